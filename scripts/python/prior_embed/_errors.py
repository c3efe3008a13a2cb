"""What can go wrong."""

from __future__ import annotations


class PriorError(RuntimeError):
    """The program failed: its last line, without its name.

    Attributes:
        exit_code: that of the process: 1 for a failure, minus the number of the signal that ended it, or None.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PriorInputError(PriorError, ValueError):
    """The program refused what it was given: a model, an option, a row."""
