"""Keep a stack's state in its data folder: ports, keys, addresses and the lock."""

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
#: Minimum number of ports below the kernel's range for outgoing connections. If there are fewer, the kernel chooses.
_ENOUGH = 256
#: For httpx's ``mounts``: requests to this machine bypass the environment's proxy.
NO_PROXY: Mapping[str, None] = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}


class StackError(EveryrunError):
    """The stack cannot start or cannot be found. The text says why and what to do."""


def free_port(taken: Iterable[int] = ()) -> int:
    """Return a free port below the range from which the kernel takes ports for outgoing connections.

    If a part with a port in that range died, the kernel could give the port to a client before the part restarts. This
    could even be a client that tries to connect to that very port. If there are hardly any ports below the range, the
    kernel chooses.
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
    raise StackError("found no free port")


def _of_the_kernel() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_busy(port: int) -> bool:
    """Return True if something listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def write_private(path: Path, value: Any) -> None:
    """Write a value as JSON to a file that only its owner may read. The file is replaced atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n", mode=0o600)


def load_state(data_dir: Path, parts: Iterable[str]) -> dict[str, Any]:
    """Return the ports, keys and ids of the stack, which stay the same at every start. Missing ones are created.

    Raises StackError if the port of one of ``parts`` is busy, or if the file that stores the state is unreadable.
    """
    path = data_dir / "stack.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise StackError(f"cannot read {path}, which holds the ports and keys of the stack: {error}") from None
    ports = state.setdefault("ports", {})
    for name in parts:
        if name not in ports:
            ports[name] = free_port(ports.values())
        elif is_busy(ports[name]):
            raise StackError(
                f"port {ports[name]} of {name} in the stack {data_dir} is busy. Stop the program that listens there, "
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
    """Ensures that at most one stack runs in a data folder. The lock ends with the process, even if it is killed."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir
        self._file: Any = None

    def take(self) -> None:
        """Take the lock. Raises StackError if another process holds it, or if the folder is unusable."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / "lock").open("a+")
        except OSError as error:
            raise StackError(f"cannot use the data folder {self._folder}: {error.strerror}") from None
        # Try several times, because the function ``holder`` takes the lock for a moment to see if it is free.
        for _ in range(20):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        else:
            self._file.close()
            raise StackError(
                f"a stack already runs in {self._folder} (process {holder(self._folder)}). To see it, run: "
                f"everyrun status --data-dir {self._folder}; to stop it: everyrun down --data-dir {self._folder}"
            )
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            self._file.close()


def holder(data_dir: Path) -> int | None:
    """Return the id of the process that runs a stack in the folder, or None if no stack runs there."""
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
    """Return the addresses and keys of the stack that runs in the folder, or None if no stack runs there.

    The lock decides whether a stack runs, because a killed stack leaves its file of addresses behind.
    """
    if holder(data_dir) is None:
        return None
    endpoints: dict[str, str] | None = _read(data_dir / "endpoints.json")
    if endpoints is not None:
        dsn = endpoints.get("postgres_dsn", "")
        names = ("api_token", "extend_api_key", "webhook_secret")
        remember([dsn, *passwords_of(dsn), *(endpoints.get(name) or "" for name in names)])
    return endpoints


def read_status(data_dir: Path) -> list[dict[str, Any]]:
    """Return one row per part of a running stack: part, state, since (epoch seconds), pid, port, restarts, url."""
    rows: list[dict[str, Any]] | None = _read(data_dir / "status.json")
    return rows or []


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
