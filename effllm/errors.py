"""The ways in which a stage may end without a result: the user's input is at fault, the cell is, or it was stopped.

Everything else is a defect of the program and keeps its traceback.
"""

from typing import Literal

Status = Literal["ok", "invalid", "oom", "nan", "unsupported", "timeout"]
"""What a row's `status` may be. Only an `ok` row is ranked; none is dropped."""


class UserError(Exception):
    """The input, the configuration or the machine is at fault.

    The message is one sentence that names the key or file, the value, and the remedy. Programs print it
    without a traceback and exit with `EXIT_USER_ERROR`.
    """


class CellFailure(Exception):
    """The technique itself failed in this cell of a table: a result, not an accident.

    The artifact is published with this status and reason instead of a payload, and the table prints them.
    """

    def __init__(self, status: Status, reason: str):
        super().__init__(reason)
        self.status = status
        self.reason = reason


class EngineError(Exception):
    """An engine that serves a model cannot go on. The message is one sentence."""


class Interrupted(Exception):
    """The process was told to stop and has saved what it needs to go on later.

    The message is one sentence. Programs print it and exit with `EXIT_INTERRUPTED`.
    """


EXIT_USER_ERROR = 2
# EX_TEMPFAIL of sysexits.h: try again later.
EXIT_INTERRUPTED = 75

_LONGEST_REASON = 160


def reason_of(error: Exception) -> str:
    """The first sentence of a library's error in one line, shortened, without its full stop."""
    text = " ".join(str(error).split()).partition(". ")[0].rstrip(".:") or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing, as a bare assertion does."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
