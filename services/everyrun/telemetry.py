"""Write structured logs: one JSON object per line on standard error, without secrets."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import structlog

from everyrun.redact import redact, remember

#: Keys of a log line whose values are never written.
HIDDEN = frozenset({"authorization", "api_key", "api_token", "secret", "secrets", "password", "token", "dsn"})


def _hide(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key in event:
        if key.lower() in HIDDEN:
            event[key] = "[hidden]"
    return event


#: Number of kinds of log lines from which on those that are no longer needed are forgotten.
_KINDS = 256


class OnceInAWhile(logging.Filter):
    """Lets only one log line of each kind pass in ``seconds``, and counts the lines that it leaves out.

    This applies to lines from ``libraries``. It is necessary because a Kafka client writes several errors per second
    while no broker answers.
    """

    def __init__(
        self, libraries: tuple[str, ...], seconds: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._libraries = libraries
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the line may pass. Add to its message how many such lines were left out before it."""
        if record.name.partition(".")[0] not in self._libraries:
            return True
        kind, now = (record.name, record.levelno, str(record.msg)), self._clock()
        if kind not in self._seen:
            self._forget_over(now)
        last, left_out = self._seen.get(kind, (-self._seconds, 0))
        if now - last < self._seconds:
            self._seen[kind] = (last, left_out + 1)
            return False
        self._seen[kind] = (now, 0)
        if left_out:
            record.msg = f"{record.msg} ({left_out} more such lines were left out)"
        return True

    def _forget_over(self, now: float) -> None:
        """Forget kinds whose time is over and of which nothing was left out, so that the memory stays bounded."""
        if len(self._seen) >= _KINDS:
            self._seen = {
                kind: (last, left_out)
                for kind, (last, left_out) in self._seen.items()
                if left_out or now - last < self._seconds
            }


def configure(service: str, level: str = "info", secrets: Iterable[str] = ()) -> None:
    """Make this process and its libraries write their logs to standard error, as JSON lines that name the service.

    The ``secrets``, and texts that have the form of a secret, are removed from every line (:mod:`everyrun.redact`).
    """
    remember(secrets)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _hide,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Leave out local variables, because they can contain whole requests.
                structlog.processors.ExceptionRenderer(
                    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
                ),
                structlog.processors.JSONRenderer(),
                lambda _logger, _method, line: redact(str(line)),
            ],
        )
    )
    handler.addFilter(OnceInAWhile(("aiokafka", "faust", "mode")))
    # By default, if logging cannot write a line, it prints the line's arguments unchanged, including secrets. This
    # turns that off.
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "aiokafka", "uvicorn.access", "faust", "mode"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    structlog.contextvars.bind_contextvars(service=service)


def log(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger. Use it as ``log(__name__).info("what happened", key=value)``."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
