"""``python -m everyrun.replay``."""

from everyrun.replay.app import main

main()
