"""A stack keeps its state in its data folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from everyrun.embedded.state import (
    FolderLock,
    StackError,
    free_port,
    holder,
    is_busy,
    load_state,
    read_endpoints,
    write_private,
)

HOLD = """
import sys, time
from pathlib import Path
from everyrun.embedded.state import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(600)
"""


def test_ports_lie_below_those_of_outgoing_connections_and_are_not_taken_twice() -> None:
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    for _ in range(50):
        ports.append(free_port(ports))
    assert len(set(ports)) == 50
    assert all(1024 < port < first_ephemeral for port in ports)


def test_a_listening_port_is_busy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert is_busy(server.getsockname()[1])
    assert not is_busy(free_port())


def test_ports_and_keys_are_kept_and_new_parts_get_theirs(tmp_path: Path) -> None:
    first = load_state(tmp_path, ["kafka", "postgres"])
    second = load_state(tmp_path, ["kafka", "postgres", "processor-1"])
    assert second["ports"].pop("processor-1") not in first["ports"].values()
    assert second == first
    assert stat.S_IMODE((tmp_path / "stack.json").stat().st_mode) == 0o600


def test_two_stacks_have_different_keys(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = load_state(tmp_path / "a", []), load_state(tmp_path / "b", [])
    assert not {one[key] for key in ("api_token", "postgres_password", "extend_api_key")} & set(
        map(str, other.values())
    )


def test_a_busy_port_names_the_part_but_not_for_a_part_that_is_not_wanted(tmp_path: Path) -> None:
    port = load_state(tmp_path, ["kafka", "emulator"])["ports"]["emulator"]
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(StackError, match=f"port {port} of emulator"):
            load_state(tmp_path, ["kafka", "emulator"])
        assert load_state(tmp_path, ["kafka"])["ports"]["emulator"] == port


def test_a_state_that_cannot_be_read_is_said_so_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    with pytest.raises(StackError, match=r"cannot read .*stack\.json"):
        load_state(tmp_path, [])
    assert (tmp_path / "stack.json").read_text() == "{"


def test_a_lock_names_its_holder_and_goes_with_it_even_when_killed(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    assert holder(tmp_path) == other.pid
    with pytest.raises(StackError, match=f"process {other.pid}"):
        FolderLock(tmp_path).take()
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert holder(tmp_path) is None
    lock = FolderLock(tmp_path)
    lock.take()
    assert holder(tmp_path) == os.getpid()
    lock.release()
    assert holder(tmp_path) is None


def test_endpoints_of_a_killed_stack_are_none(tmp_path: Path) -> None:
    write_private(tmp_path / "endpoints.json", {"query_url": "http://127.0.0.1:1"})
    assert read_endpoints(tmp_path) is None
    lock = FolderLock(tmp_path)
    lock.take()
    assert read_endpoints(tmp_path) == {"query_url": "http://127.0.0.1:1"}
    lock.release()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    write_private(path, {"a": 1})
    with pytest.raises(TypeError):
        write_private(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
