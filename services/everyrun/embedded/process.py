"""Start processes that end when their parent ends, even if the parent is killed. Linux only."""

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
    """Raise PlatformError if this system is not Linux, because only Linux can tie processes to their parent."""
    if not sys.platform.startswith("linux"):
        raise PlatformError(
            f"The embedded stack runs on Linux; this is {sys.platform}. Run the services against your own Kafka and "
            "Postgres: set EVERYRUN_KAFKA_BOOTSTRAP and EVERYRUN_POSTGRES_DSN."
        )


def _become(user: str) -> None:
    """Change to an unprivileged user, but keep the right to read private folders of other users.

    Postgres refuses to run as root, but its binaries may lie in a private folder of root (such as a clone in root's
    home). The capability CAP_DAC_OVERRIDE lets Postgres read the binaries there. The secure bit NO_SETUID_FIXUP makes
    access(2) respect the capability too.
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
    """Return a ``preexec_fn`` that makes the kernel kill the child when the thread that started the child ends.

    The function also changes the user. It does this first, because a change of user would cancel the request to the
    kernel.
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
    """Start a process in its own session, tied to the calling thread (see ``tie``). Append its output to ``log``."""
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
    """Send a signal to a process that ``start`` has started, and to the children of this process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def working_in(folder: Path) -> list[int]:
    """Return the ids of the running processes whose working folder is ``folder``.

    Processes of other users are not found if this user may not read their working folder.
    """
    there = str(folder.resolve())
    found = []
    for entry in Path("/proc").iterdir():
        # Reading the link fails if the process has ended or belongs to another user.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "cwd") == there:
                found.append(int(entry.name))
    return found
