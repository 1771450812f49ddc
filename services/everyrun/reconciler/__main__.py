"""Run the reconciler: ``python -m everyrun.reconciler``."""

from everyrun.reconciler.app import main

main()
