"""The one kind of error that a user is shown."""

import textwrap

BAD_INPUT, FAILED = 2, 1
LONGEST = 200
"""Characters of a library's message that are shown."""


class Problem(Exception):
    """Something the user can act on; shown as one line."""

    def __init__(self, message, status=BAD_INPUT):
        super().__init__(message)
        self.status = status


def first_line(error):
    """What an exception of a library says, short enough for one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[0].rstrip("."), LONGEST, placeholder=" …") if lines else type(error).__name__
