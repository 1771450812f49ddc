"""Track whether a service is alive and ready."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from everyrun.redact import readable, redact


class Health:
    """Tracks which parts of a service work, and answers ``/healthz`` and ``/readyz``.

    A service is ready if it can serve its callers. While a part does not work, call ``not_ready(part, why)``; when it
    works, call ``ready(part)``. The arguments of the constructor name the parts that must report at start. There are
    three kinds of parts:

    - ``needs``: the service is not ready while one of these does not work. Parts that no argument names are of this
      kind too.
    - ``at_start``: like ``needs`` until the part has worked once, and like ``reported`` from then on.
    - ``reported``: ``/readyz`` shows if the part does not work, but the service is ready without it. Work that needs
      the part is done later, and callers are served meanwhile.

    The service is alive until ``fail(why)`` is called.
    """

    def __init__(self, *needs: str, at_start: Iterable[str] = (), reported: Iterable[str] = ()) -> None:
        self._at_start = set(at_start)
        self._reported = set(reported)
        self._waiting: dict[str, str] = dict.fromkeys((*needs, *self._at_start, *self._reported), "starting")
        self._failed: str | None = None

    def ready(self, part: str) -> None:
        """Record that the part works."""
        self._waiting.pop(part, None)
        if part in self._at_start:
            self._at_start.discard(part)
            self._reported.add(part)

    def not_ready(self, part: str, why: str) -> None:
        """Record that the part does not work, for now."""
        # Anybody can call /readyz without a token, so the text must not contain a secret.
        self._waiting[part] = redact(readable(why))

    def fail(self, why: str) -> None:
        """Record that this process cannot continue and should be restarted."""
        self._failed = redact(why)

    @property
    def waiting(self) -> dict[str, str]:
        """The parts that do not work, each with its reason."""
        return dict(self._waiting)

    @property
    def missing(self) -> dict[str, str]:
        """The needed parts that do not work, each with its reason. If there are no such parts, the service is ready."""
        return {part: why for part, why in self._waiting.items() if part not in self._reported}

    def answer(self, path: str) -> tuple[int, bytes]:
        """Return the HTTP status (200 or 503) and the JSON body of the response for ``/healthz`` or ``/readyz``.

        In the body, ``waiting`` contains every part that does not work, with the reason. ``missing`` lists the parts
        among them that keep the service from being ready.
        """
        if self._failed is not None:
            return 503, msgspec.json.encode({"status": "failed", "reason": self._failed})
        if path == "/healthz":
            return 200, msgspec.json.encode({"status": "ok"})
        missing = self.missing
        body: dict[str, Any] = {"status": "not ready" if missing else "ready"}
        if self._waiting:
            body["waiting"] = self._waiting
        if missing:
            body["missing"] = sorted(missing)
        return 503 if missing else 200, msgspec.json.encode(body)
