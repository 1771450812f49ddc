"""Run the bridge: an HTTP server for webhooks, and a Kafka producer that starts once Kafka answers."""

from __future__ import annotations

import asyncio

from aiokafka.errors import KafkaError

from everyrun.bridge.handler import Handler
from everyrun.health import Health
from everyrun.log import topics
from everyrun.log.producer import Producer
from everyrun.serve import http_server, run_service, with_health
from everyrun.settings import Settings

#: When the bridge stops: the seconds for requests in progress to end, and then the seconds for the producer to stop.
_DRAIN, _FLUSH = 4.0, 2.0


class _UnavailableLog:
    """Used until Kafka first answers: each webhook is then answered with 503, so that Extend retries it."""

    async def append(self, records: object) -> None:
        raise ConnectionError("Kafka has not answered yet")


async def _main(settings: Settings, stop: asyncio.Event) -> None:
    # A webhook is accepted only once it is in the log. So the bridge is not ready while Kafka is unavailable.
    health = Health("topics", "kafka", "producer")
    handler = Handler(
        _UnavailableLog(),
        [secret.get_secret_value().encode() for secret in settings.webhook_secrets],
        max_age=settings.webhook_max_age,
        max_ahead=settings.webhook_max_ahead,
        max_bytes=settings.webhook_max_bytes,
    )
    producing = asyncio.create_task(_produce(settings, health, handler))
    stopped = asyncio.create_task(stop.wait())
    try:
        async with http_server(
            settings.bridge_listen,
            with_health(health, handler, handler.registry),
            drain=_DRAIN,
            keep_alive=settings.keep_alive,
        ):
            await asyncio.wait([producing, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Requests in progress are answered by now, so the producer may stop.
        stopped.cancel()
        producing.cancel()
        await asyncio.wait([producing], timeout=_FLUSH)
    if producing.done() and not producing.cancelled():
        producing.result()


async def _produce(settings: Settings, health: Health, handler: Handler) -> None:
    await topics.wait_until_valid(settings, health)
    while True:
        try:
            async with Producer(settings, linger_ms=2) as producer:
                handler.log = producer
                health.ready("producer")
                await topics.keep_checking(settings, health)
        except (KafkaError, OSError) as error:
            health.not_ready("kafka", f"{type(error).__name__}: {error}")
            health.not_ready("producer", "the producer restarts once Kafka answers")
            await asyncio.sleep(0.5)


def main() -> None:
    """Run the bridge until SIGTERM or SIGINT."""
    run_service("bridge", ("kafka_bootstrap", "webhook_secrets"), _main, fast_loop=True)
