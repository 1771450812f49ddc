"""Run the query service: ``python -m everyrun.query``."""

from everyrun.query.app import main

main()
