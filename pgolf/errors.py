"""The errors that a user can act on.

Raised where the cause is known, with a message of one line that says what, where and what to do; caught only in
`cli`, which prints that line and exits with the code below.
"""


class PgolfError(Exception):
    """Bad input or usage: exit code 2."""

    exit_code = 2
    every_rank = False
    """Whether it may have happened on this process alone. Of several processes only the first reports the others."""


class RankError(PgolfError):
    """An error of one process of several, such as a GPU that is out of memory; each that has it reports it."""

    every_rank = True


class CheckFailed(PgolfError):
    """A check came out negative (over the byte budget, an invalid evaluation): exit code 1."""

    exit_code = 1
