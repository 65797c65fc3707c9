"""The errors that a user can act on.

Raised where the cause is known, with a message of one line that says what, where and what to do; caught only in
`cli`, which prints that line and exits with the code below.
"""


class PgolfError(Exception):
    """Bad input or usage: exit code 2."""

    exit_code = 2


class CheckFailed(PgolfError):
    """A check came out negative (over the byte budget, an invalid evaluation): exit code 1."""

    exit_code = 1
