"""Track whether a service is alive and ready."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from everyrun.redact import readable, redact


class Health:
    """Tracks which parts of a service work, and answers ``/healthz`` and ``/readyz``.

    A service is ready if it can serve its callers. Report a part that does not work with ``not_ready(part, why)``, and
    ``ready(part)`` once it works. There are three kinds of part:

    - ``needs``, and every part not named here: the service is not ready until all of them work.
    - ``at_start``: needed until they have worked once; after that they are only reported.
    - ``reported``: never needed. Work that waits for them is done later, and callers are served meanwhile.

    The service is alive until ``fail(why)``.
    """

    def __init__(self, *needs: str, at_start: Iterable[str] = (), reported: Iterable[str] = ()) -> None:
        self._at_start = set(at_start)
        self._reported = set(reported)
        self._waiting: dict[str, str] = dict.fromkeys((*needs, *self._at_start, *self._reported), "starting")
        self._failed: str | None = None

    def ready(self, part: str) -> None:
        """Report that the part works."""
        self._waiting.pop(part, None)
        if part in self._at_start:
            self._at_start.discard(part)
            self._reported.add(part)

    def not_ready(self, part: str, why: str) -> None:
        """Report that the part does not work, for now."""
        # The endpoint needs no token, so the text must not hold a secret.
        self._waiting[part] = redact(readable(why))

    def fail(self, why: str) -> None:
        """Report that this process cannot continue and should be restarted."""
        self._failed = redact(why)

    @property
    def waiting(self) -> dict[str, str]:
        """The parts that do not work, each with its reason."""
        return dict(self._waiting)

    @property
    def missing(self) -> dict[str, str]:
        """The needed parts that do not work, each with its reason. The service is ready if there are none."""
        return {part: why for part, why in self._waiting.items() if part not in self._reported}

    def answer(self, path: str) -> tuple[int, bytes]:
        """Return status (200 or 503) and JSON body for ``/healthz`` or ``/readyz``.

        ``waiting`` lists every part that does not work, including those that are only reported.
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
