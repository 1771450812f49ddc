"""Define the exit codes of the commands."""

from everyrun.errors import EveryrunError, NotFound

OK = 0
#: Something went wrong; the message says what.
ERROR = 1
#: The command was called wrongly (Typer's own).
USAGE = 2
#: Every input settled, and some did not end PROCESSED (``--wait``, ``watch``).
INPUTS_FAILED = 3
#: The thing that was named does not exist, or no stack runs.
NOT_FOUND = 4

#: The same rows were submitted before, and ``--again`` was not given (``submit``).
SUBMITTED_BEFORE = 5

#: Only inputs that wait for a person are open: a review at Extend, or ambiguous runs (``--wait``, ``watch``).
NEEDS_PERSON = 6

#: A signal ended the command early. Shells report SIGINT by the same code.
INTERRUPTED = 130


def of(error: EveryrunError, otherwise: int = ERROR) -> int:
    """Return the exit code for an error: NOT_FOUND for its own kind, ``otherwise`` for every other kind."""
    return NOT_FOUND if isinstance(error, NotFound) else otherwise


HELP = (
    "Exit codes: 0 done; 1 an error, described on standard error; 2 wrong usage; 3 inputs failed (--wait, watch); "
    "4 not found, or no stack runs; 5 the same rows were submitted before (submit); "
    "6 only inputs that wait for a person are open (--wait, watch); 130 interrupted."
)
