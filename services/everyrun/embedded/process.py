"""Start processes that end with their parent, however it ends. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from everyrun.errors import EveryrunError

_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 1 << 2
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class PlatformError(EveryrunError):
    """This machine cannot run an embedded stack. The text says why and names the alternative."""


def check_platform() -> None:
    """Raise PlatformError if this system cannot tie processes to their parent."""
    if not sys.platform.startswith("linux"):
        raise PlatformError(
            f"The embedded stack runs on Linux; this is {sys.platform}. Run the services against your own Kafka and "
            "Postgres: set EVERYRUN_KAFKA_BOOTSTRAP and EVERYRUN_POSTGRES_DSN."
        )


def _become(user: str) -> None:
    """Change to an unprivileged user, but keep the right to read in private folders.

    Postgres refuses to run as root. Its binaries can lie in a private folder (a clone in root's home): the capability
    lets it read them there, and the secure bit makes access(2) respect the capability.
    """
    entry = pwd.getpwnam(user)
    _libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    mask = 1 << _CAP_DAC_OVERRIDE
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)(_CapData(mask, mask, mask), _CapData(0, 0, 0))
    if _libc.capset(ctypes.byref(header), ctypes.byref(data)) == 0:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def tie(user: str | None = None) -> Callable[[], None]:
    """Return a ``preexec_fn`` by which the kernel kills the child when the thread that started it ends.

    It changes the user first, because a later change would untie the child.
    """
    parent = os.getpid()

    def before_exec() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        if user is not None:
            _become(user)
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def start(
    command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path | None = None, user: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a tied process in its own session. Its output is appended to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=tie(user),
        )


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def working_in(folder: Path) -> list[int]:
    """Return the running processes whose working folder is ``folder``, as far as we may read that."""
    there = str(folder.resolve())
    found = []
    for entry in Path("/proc").iterdir():
        # A process that has ended has no working folder.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "cwd") == there:
                found.append(int(entry.name))
    return found
