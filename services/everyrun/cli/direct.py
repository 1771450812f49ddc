"""Commands that go to Kafka and Postgres themselves: of a running stack's folder, or as the settings name them."""

from __future__ import annotations

from pathlib import Path

from everyrun.cli import exits
from everyrun.cli.console import fail
from everyrun.embedded.state import read_endpoints
from everyrun.settings import Settings, SettingsError, load


def settings_of(data_dir: Path, *needs: str) -> Settings:
    """The settings, with the addresses of the stack that runs in the folder. Ends the command where one is missing."""
    endpoints = read_endpoints(data_dir) or {}
    known = {name: endpoints[name] for name in ("kafka_bootstrap", "postgres_dsn", "api_token") if name in endpoints}
    try:
        return load(**known).need(*needs)
    except SettingsError as error:
        fail(f"no stack runs in {data_dir} (start one with: everyrun up), and\n{error}", exits.NOT_FOUND)
