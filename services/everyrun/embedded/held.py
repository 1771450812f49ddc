"""Import a service at once, but run it only when its stores are ready.

``python -m everyrun.embedded.held everyrun.bridge GATE``. The stack creates the file GATE when Kafka, Postgres, the
topics and the tables are ready. Meanwhile the service imports its modules, which takes about a second.
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
