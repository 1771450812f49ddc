"""What a stack keeps in its data folder: ports, keys, the lock."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

#: Every part that listens, with what it is called to people.
PORTS = ("kafka", "kafka-controller", "postgres", "emulator", "submission", "bridge", "query", "reconciler")


class StackError(Exception):
    """The stack cannot start, or cannot be found; the text says why and what to do."""


def free_port(taken: set[int]) -> int:
    """A port that nothing listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in taken:
            return port


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
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def load_state(data_dir: Path, processors: int) -> dict[str, Any]:
    """The stack's ports, keys and ids: those of its first start, and new ones for parts that are new.

    Raises StackError where a port is busy.
    """
    path = data_dir / "stack.json"
    state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    ports = state.setdefault("ports", {})
    for name in (*PORTS, *(f"processor-{number}" for number in range(processors))):
        if name not in ports:
            ports[name] = free_port(set(ports.values()))
        elif is_busy(ports[name]):
            raise StackError(
                f"port {ports[name]}, which {name} of the stack in {data_dir} has, is busy. End what listens there "
                f"(an earlier stack: everyrun down --data-dir {data_dir}), or use another --data-dir."
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
        self._path = data_dir / "lock"
        self._file: Any = None

    def take(self) -> None:
        """Raises StackError naming the process that has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = holder(self._path.parent)
            raise StackError(
                f"a stack runs in {self._path.parent} already (process {pid}). "
                f"See it with: everyrun status; end it with: everyrun down --data-dir {self._path.parent}"
            ) from None
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
    except FileNotFoundError:
        pass
    return None
