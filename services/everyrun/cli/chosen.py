"""Choose the services that a command calls: those of a running stack, unless the environment names others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from everyrun.embedded.state import read_endpoints
from everyrun.settings import Settings, SettingsError, load, variable

#: For each secret: the settings with the addresses to which it is sent. A stack's secret must be sent only to the
#: stack's own addresses.
_SECRET_OF = {
    "api_token": ("submission_url", "query_url", "bridge_url", "reconciler_url", "replay_url", "notifier_url"),
    "extend_api_key": ("extend_base_url",),
}


def explicit(settings: Settings) -> set[str]:
    """Return the names of the settings that the environment sets to a value that is not empty. Pure."""
    return {name for name in settings.model_fields_set if _plain(getattr(settings, name))}


def chosen(known: Mapping[str, Any], environment: Settings) -> dict[str, Any]:
    """Return the settings of a stack (``known``), except those that the environment sets itself. Pure.

    If the stack has an emulator, the stack also has a key for it. The environment's key for Extend is then used only if
    the environment sets Extend's address too. Raises SettingsError if a secret of the stack would be sent to an
    address outside the stack.
    """
    given = explicit(environment)
    if known.get("emulator_url") and "extend_base_url" not in given:
        given -= {"extend_api_key", "extend_workspace_id"}
    for secret, addresses in _SECRET_OF.items():
        for name in addresses:
            elsewhere = name in given and getattr(environment, name) != known.get(name)
            if elsewhere and secret not in given and known.get(secret):
                raise SettingsError(
                    f"{variable(name)} names an address that is not the stack's, so the stack's {_WORDS[secret]} is "
                    f"not sent there: set {variable(secret)} too"
                )
    return {name: value for name, value in known.items() if name in Settings.model_fields and name not in given}


_WORDS = {"api_token": "token", "extend_api_key": "API key"}


def settings_in(data_dir: Path) -> tuple[Settings, dict[str, str] | None]:
    """Return the settings, and the endpoints of the stack that runs in the folder (None if none runs).

    Settings that the environment lacks are taken from the stack. Raises SettingsError.
    """
    environment = load()
    endpoints = read_endpoints(data_dir)
    if endpoints is None:
        return environment, None
    emulated = {"extend_workspace_id": ""} if endpoints["emulator_url"] else {}
    return load(**chosen({**endpoints, **emulated}, environment)), endpoints


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value
