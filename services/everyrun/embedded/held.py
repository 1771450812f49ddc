"""Run a service that is started before its stores: import it at once, run it when the gate opens.

``python -m everyrun.embedded.held everyrun.bridge GATE``: the gate is a file, which the stack writes when Kafka,
Postgres, the topics and the tables are ready. Importing a service takes as long as starting Postgres.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path


def main(service: str, gate: Path) -> None:
    """Import the service, wait for the gate, run the service."""
    app = import_module(f"{service}.app")
    while not gate.exists():
        time.sleep(0.05)
    app.main()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
