"""Import a service at once, but run the service only when Kafka, Postgres, the topics and the tables are ready.

Usage: ``python -m everyrun.embedded.held everyrun.bridge GATE``. The stack creates the file GATE when everything that
the service needs is ready. The import takes about a second. Kafka and Postgres start during that second, so the whole
stack is ready sooner.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path


def main(service: str, gate: Path) -> None:
    """Import the service, wait until the file ``gate`` exists, and run the service."""
    app = import_module(f"{service}.app")
    while not gate.exists():
        time.sleep(0.05)
    app.main()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
