"""What a stack keeps in its data folder: ports and keys, the addresses while it runs, the lock."""

from __future__ import annotations

import fcntl
import json
import os
import random
import secrets
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from everyrun.atomic_file import write_text
from everyrun.errors import EveryrunError
from everyrun.redact import passwords_of, remember

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
#: Fewer ports than these below the kernel's are too few to choose from.
_ENOUGH = 256
#: For httpx's ``mounts``: what runs on this machine is not asked through a proxy that the environment names.
NO_PROXY: Mapping[str, None] = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}


class StackError(EveryrunError):
    """The stack cannot start, or cannot be found; the text says why and what to do."""


def free_port(taken: Iterable[int] = ()) -> int:
    """A port that nothing listens on now, below those that the kernel gives to outgoing connections.

    One of the kernel's could be taken by a client, even one that connects to the port itself, while a part that has
    died is away; the part could then not start again. Where the kernel has left next to none, it is one of its own.
    """
    try:
        first_ephemeral = int(_EPHEMERAL.read_text().split()[0])
    except OSError:
        first_ephemeral = 32_768
    below = range(max(first_ephemeral - 16_000, 1_025), first_ephemeral)
    used = set(taken)
    for _ in range(1_000):
        port = random.choice(below) if len(below) >= _ENOUGH else _of_the_kernel()  # noqa: S311
        if port not in used and not is_busy(port):
            return port
    raise StackError("no free port was found")


def _of_the_kernel() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_busy(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def write_private(path: Path, value: Any) -> None:
    """Write JSON that only the owner can read, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n", mode=0o600)


def load_state(data_dir: Path, parts: Iterable[str]) -> dict[str, Any]:
    """The stack's ports, keys and ids: those of its first start, and new ones for parts that are new.

    Raises StackError where the port of one of ``parts`` is busy, or the file cannot be read.
    """
    path = data_dir / "stack.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read ({error}); it holds the ports and keys of the stack.") from None
    ports = state.setdefault("ports", {})
    for name in parts:
        if name not in ports:
            ports[name] = free_port(ports.values())
        elif is_busy(ports[name]):
            raise StackError(
                f"port {ports[name]}, which {name} of the stack in {data_dir} has, is busy. End what listens there, "
                "or use another --data-dir."
            )
    state.setdefault("api_token", f"ert_{secrets.token_hex(24)}")
    state.setdefault("postgres_password", secrets.token_hex(16))
    state.setdefault("extend_api_key", f"sk_{secrets.token_hex(16)}")
    state.setdefault("workflow_id", "workflow_invoices")
    state.setdefault("webhook_secret", None)
    write_private(path, state)
    return state


class FolderLock:
    """One stack a data folder. Released when the process ends, however it ends."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir
        self._file: Any = None

    def take(self) -> None:
        """Raises StackError naming the process that has it, or saying why the folder cannot be used."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / "lock").open("a+")
        except OSError as error:
            raise StackError(f"the data folder {self._folder} cannot be used: {error.strerror}.") from None
        # `holder` has the lock for a moment while it looks.
        for _ in range(20):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        else:
            self._file.close()
            raise StackError(
                f"a stack runs in {self._folder} already (process {holder(self._folder)}). See it with: "
                f"everyrun status --data-dir {self._folder}; end it with: everyrun down --data-dir {self._folder}"
            )
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let another stack have the folder."""
        if self._file is not None:
            self._file.close()


def holder(data_dir: Path) -> int | None:
    """The process that runs a stack in the folder; None where none does."""
    try:
        with (data_dir / "lock").open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
    except OSError:
        pass
    return None


def read_endpoints(data_dir: Path) -> dict[str, str] | None:
    """The addresses and keys of a stack that runs and is ready; None where none is (a killed one leaves the file)."""
    if holder(data_dir) is None:
        return None
    endpoints: dict[str, str] | None = _read(data_dir / "endpoints.json")
    if endpoints is not None:
        dsn = endpoints.get("postgres_dsn", "")
        names = ("api_token", "extend_api_key", "webhook_secret")
        remember([dsn, *passwords_of(dsn), *(endpoints.get(name) or "" for name in names)])
    return endpoints


def read_status(data_dir: Path) -> list[dict[str, Any]]:
    """A line a part of a running stack: part, state, since (seconds of the epoch), pid, port, restarts, url."""
    rows: list[dict[str, Any]] | None = _read(data_dir / "status.json")
    return rows or []


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def default_data_dir() -> Path:
    """EVERYRUN_DATA_DIR, or ./.everyrun."""
    return Path(os.environ.get("EVERYRUN_DATA_DIR", ".everyrun"))
