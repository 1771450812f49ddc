"""Define the exit codes of the commands."""

from everyrun.errors import EveryrunError, NotFound

OK = 0
#: Something went wrong; the message says what.
ERROR = 1
#: The command was called wrongly. Typer itself uses the same code.
USAGE = 2
#: Some inputs failed, or can never settle, and no other input is open (``--wait``, ``watch``).
INPUTS_FAILED = 3
#: Something that the user named does not exist, or no stack runs.
NOT_FOUND = 4

#: The same rows were submitted before, and ``--again`` was not given (``submit``).
SUBMITTED_BEFORE = 5

#: Every open input waits for a person, because of a review at Extend or ambiguous runs (``--wait``, ``watch``).
NEEDS_PERSON = 6

#: A signal ended the command early. Shells show the same code for a program that SIGINT ended.
INTERRUPTED = 130


def of(error: EveryrunError, otherwise: int = ERROR) -> int:
    """Return the exit code for an error: NOT_FOUND for an error of the class NotFound, ``otherwise`` for any other."""
    return NOT_FOUND if isinstance(error, NotFound) else otherwise


HELP = (
    "Exit codes: 0 done; 1 an error, described on standard error; 2 wrong usage; 3 some inputs failed (--wait, watch); "
    "4 not found, or no stack runs; 5 the same rows were submitted before (submit); "
    "6 every open input needs a person (--wait, watch); 130 interrupted."
)
