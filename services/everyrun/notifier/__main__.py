"""``python -m everyrun.notifier``."""

from everyrun.notifier.app import main

main()
