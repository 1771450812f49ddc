"""Exit codes of every command."""

from everyrun.errors import EveryrunError, NotFound

OK = 0
#: Something went wrong; the message says what.
ERROR = 1
#: The command was called wrongly (Typer's own).
USAGE = 2
#: Everything was accounted for, but some inputs did not end PROCESSED (``--wait``, ``watch``).
INPUTS_FAILED = 3
#: What was asked for does not exist, or no stack was found.
NOT_FOUND = 4

#: The very same rows were submitted before, and ``--again`` was not given (``submit``).
SUBMITTED_BEFORE = 5

#: Only inputs that wait for a person are open: a review at Extend, or ambiguous runs (``--wait``, ``watch``).
NEEDS_PERSON = 6

#: A signal ended the command before it was done, as shells say it of SIGINT.
INTERRUPTED = 130


def of(error: EveryrunError, otherwise: int = ERROR) -> int:
    """Return the exit code for an error: NOT_FOUND for its own kind, ``otherwise`` for every other kind."""
    return NOT_FOUND if isinstance(error, NotFound) else otherwise


HELP = (
    "Exit codes: 0 done; 1 an error, said on standard error; 2 wrong usage; 3 inputs failed (--wait, watch); "
    "4 nothing of that name, or no stack found; 5 the same was submitted before (submit); "
    "6 only inputs that wait for a person are open (--wait, watch); 130 interrupted."
)
