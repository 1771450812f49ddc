"""Run the replay service: ``python -m everyrun.replay``."""

from everyrun.replay.app import main

main()
