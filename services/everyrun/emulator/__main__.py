"""Run the emulator: ``python -m everyrun.emulator``."""

from everyrun.emulator.app import main

main()
