"""``python -m everyrun.bridge``."""

from everyrun.bridge.app import main

main()
