"""Write structured logs: one JSON object per line on standard error, without secrets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

import structlog

from everyrun.redact import redact, remember

#: Keys whose values are never logged.
HIDDEN = frozenset({"authorization", "api_key", "api_token", "secret", "secrets", "password", "token", "dsn"})


def _hide(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for key in event:
        if key.lower() in HIDDEN:
            event[key] = "[hidden]"
    return event


def configure(service: str, level: str = "info", secrets: Iterable[str] = ()) -> None:
    """Send the logs of this process and its libraries to standard error, as JSON lines that name the service.

    The given ``secrets``, and texts that look like secrets, are removed from every line (:mod:`everyrun.redact`).
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
                # Leave out local variables, which hold whole requests.
                structlog.processors.ExceptionRenderer(
                    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
                ),
                structlog.processors.JSONRenderer(),
                lambda _logger, _method, line: redact(str(line)),
            ],
        )
    )
    # Otherwise logging would print a line that it cannot write as it was given, with its secrets.
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
