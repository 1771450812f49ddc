"""Processes that end with their parent, however it ends. Linux."""

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
    """This machine cannot run an embedded stack; the text says why and what to do instead."""


def check_platform() -> None:
    """Raise PlatformError where processes cannot be tied to their parent."""
    if not sys.platform.startswith("linux"):
        raise PlatformError(
            f"The embedded stack runs on Linux; this is {sys.platform}. Run the services against your own Kafka and "
            "Postgres: set EVERYRUN_KAFKA_BOOTSTRAP and EVERYRUN_POSTGRES_DSN."
        )


def _become(user: str) -> None:
    """Change to an unprivileged user that may still pass folders closed to it (a clone in a private folder).

    Postgres refuses to run as root; without the capability it could not read its own binaries there. The
    secure bit lets access(2), with which it looks for them, count it too.
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
    """For ``preexec_fn``: the child gets SIGKILL from the kernel when the thread that started it ends.

    The user is changed first, as that would untie the child again.
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
    """Start a tied process in a session of its own; its output goes to the end of ``log``."""
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
    """Signal a started process and all that it started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def working_in(folder: Path) -> list[int]:
    """The processes, as far as we may look, whose working folder it is; those that have ended are not counted."""
    there = str(folder.resolve())
    found = []
    for entry in Path("/proc").iterdir():
        # One that ends meanwhile, and one that has ended, has none.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "cwd") == there:
                found.append(int(entry.name))
    return found
