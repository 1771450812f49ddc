"""``python -m everyrun.processor``."""

from everyrun.processor.app import main

main()
