"""Run the submission service with ``python -m everyrun.submission``."""

from everyrun.submission.app import main

main()
