"""Run a service as a process, with an HTTP server, health paths, metrics, and an orderly end after a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any

import msgspec
import uvicorn
import uvloop
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from everyrun import telemetry
from everyrun.health import Health
from everyrun.limits import LimitedProtocol, with_body_timeout
from everyrun.memory import keep_releasing_memory
from everyrun.redact import redact
from everyrun.settings import Settings, SettingsError, listen_address, load

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]


#: Seconds within which a process must end after a signal, whatever it waits for. After that its work is cancelled.
END_WITHIN = 8.0


class _Ready(Collector):
    """Exports the metrics ``everyrun_ready`` (0 if readyz answers 503) and ``everyrun_waiting`` (1 per broken part)."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield both metrics."""
        status, _ = self._health.answer("/readyz")
        what = "1 if the process can serve its callers, else 0."
        yield GaugeMetricFamily("everyrun_ready", what, value=float(status == 200))
        what = "1 for each part that does not work, even if it is not needed."
        waiting = GaugeMetricFamily("everyrun_waiting", what, labels=["part"])
        for part in self._health.waiting:
            waiting.add_metric([part], 1)
        yield waiting


def with_health(health: Health, app: AsgiApp | None = None, registry: CollectorRegistry | None = None) -> AsgiApp:
    """Return an ASGI application that answers ``/healthz``, ``/readyz`` and ``/metrics`` without a token.

    It passes all other requests to ``app``. ``/metrics`` shows ``registry``, to which the metrics of the process and of
    its health are added.
    """
    shown = registry if registry is not None else CollectorRegistry()
    shown.register(_Ready(health))
    ProcessCollector(registry=shown)

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if path in ("/healthz", "/readyz"):
            await respond(send, *health.answer(path))
        elif path == "/metrics" and scope["method"] == "GET":
            await respond(send, 200, generate_latest(shown), CONTENT_TYPE_LATEST.encode())
        elif app is not None:
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await respond(send, 404, b'{"code":"NOT_FOUND","message":"there are only /healthz, /readyz and /metrics"}')

    return asgi


class StartingApp:
    """An ASGI application that answers every request with 503 until ``app`` is set, and then passes requests to it.

    With it, a service can listen from its first second, so that a probe or a caller learns what the service is waiting
    for.
    """

    def __init__(self, health: Health) -> None:
        self.app: AsgiApp | None = None
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to ``app``. If that is not set yet, answer 503 UNAVAILABLE with Retry-After."""
        if self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            parts = ", ".join(sorted(self._health.missing))
            message = "the service is starting" + (f" and waits for: {parts}" if parts else "") + "; retry later"
            body = {"code": "UNAVAILABLE", "message": message}
            await respond(send, 503, msgspec.json.encode(body), more=[(b"retry-after", b"1")])


async def respond(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = b"application/json",
    more: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send a complete HTTP response. ``more`` are further headers."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, because ``run_service`` handles signals."""

    #: Set whenever ``should_exit`` becomes True, so that ``main_loop`` can wait for this event.
    exiting: asyncio.Event

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield

    async def main_loop(self) -> None:
        """Run uvicorn's periodic work once a second. Return at once when the server must stop.

        uvicorn's own loop wakes up ten times a second to look at ``should_exit``, which uses CPU while nothing happens.
        """
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.exiting.wait(), 1.0)


@contextlib.asynccontextmanager
async def http_server(
    listen: str, app: AsgiApp, drain: float = 5.0, *, dated: bool = True, keep_alive: int = 75
) -> Any:
    """Serve ``app`` on ``host:port`` while the block runs. When the block ends, open requests get ``drain`` seconds.

    Idle connections are closed after ``keep_alive`` seconds. If ``dated`` is true, responses have a Date header.
    :mod:`everyrun.limits` limits the headers and the time for a body; ``app`` must limit the size of a body.
    """
    host, port = listen_address(listen)
    config = uvicorn.Config(
        with_body_timeout(app),
        http=LimitedProtocol,
        ws="none",
        proxy_headers=False,
        host=host,
        port=port,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=dated,
        timeout_graceful_shutdown=int(drain),
        timeout_keep_alive=keep_alive,
    )
    server = _Server(config)
    server.exiting = asyncio.Event()
    serving = asyncio.create_task(server.serve())
    while not server.started:
        if serving.done():
            serving.result()
            raise RuntimeError(f"cannot listen on {listen}")
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        server.exiting.set()
        await serving


class StopEvent(asyncio.Event):
    """An event that a signal sets. ``signal`` is the name of the first signal, for example SIGTERM."""

    signal = ""

    def set_by(self, number: int) -> None:
        """Set the event, because the process has received the signal with this number."""
        self.signal = self.signal or signal.Signals(number).name
        self.set()


def stop_on_signals() -> StopEvent:
    """Return an event that SIGTERM and SIGINT set.

    SIGINT sets the event even in a background job of a shell. Such a process inherits from the shell that it ignores
    SIGINT, which is undone here.
    """
    stop = StopEvent()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
        loop.add_signal_handler(number, stop.set_by, number)
    return stop


def run_service(
    name: str,
    needs: tuple[str, ...],
    main: Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]],
    *,
    fast_loop: bool = False,
) -> None:
    """Run ``main(settings, stop)`` as the process of a service. ``main`` must return soon after ``stop`` is set.

    If one of the settings in ``needs`` is missing, or any setting is wrong, name its variable on standard error and end
    with status 2. ``fast_loop`` is for services that answer many small requests: they use uvloop.
    """
    try:
        settings = load().need(*needs)
    except SettingsError as error:
        print(f"everyrun {name} cannot start:\n{error}", file=sys.stderr)
        raise SystemExit(2) from None
    telemetry.configure(name, settings.log_level, settings.secrets())

    async def body() -> None:
        stop = stop_on_signals()
        work, stopped = asyncio.create_task(main(settings, stop)), asyncio.create_task(stop.wait())
        releasing = asyncio.create_task(keep_releasing_memory())
        await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        releasing.cancel()
        await asyncio.wait([work], timeout=END_WITHIN)
        if not work.done():
            # The service has not ended in time: it is still waiting for Kafka or Postgres at its start, or for
            # something that does not end. To cancel it loses nothing, because a service must survive being killed
            # anyway.
            work.cancel()
            await asyncio.wait([work], timeout=1.0)
        if work.done() and not work.cancelled():
            work.result()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop if fast_loop else None) as runner:
        try:
            runner.run(body())
        except SettingsError as error:
            # Some mistakes in settings are found only when the settings are used.
            print(f"everyrun {name} cannot start:\n{redact(str(error))}", file=sys.stderr)
            raise SystemExit(2) from None
