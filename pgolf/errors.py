"""The errors that a user can act on.

Raised where the cause is known, with a message of one line that says what, where and what to do; caught only in
`cli`, which prints that line and exits with the code below.
"""

import difflib
import errno
import os
import re
from collections.abc import Sequence


class PgolfError(Exception):
    """Bad input or usage: exit code 2."""

    exit_code = 2
    every_rank = False
    """True if the error may have happened on this process alone; all other errors are reported by rank 0 only."""


class RankError(PgolfError):
    """An error of one process of several, such as a GPU that is out of memory; each that has it reports it."""

    every_rank = True


class CheckFailed(PgolfError):
    """A check came out negative (over the byte budget, an invalid evaluation): exit code 1."""

    exit_code = 1


_ADVICE = {
    errno.ENOSPC: "free some space there, or choose another --artifacts",
    errno.EDQUOT: "your quota is used up: free some space there, or choose another --artifacts",
    errno.EACCES: "check the permissions, or choose another --artifacts",
    errno.EPERM: "check the permissions, or choose another --artifacts",
    errno.EROFS: "the file system is read-only: choose another --artifacts",
    errno.EIO: "the disk or its connection fails: check it, then run the command again",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file: check it",
    errno.EISDIR: "a file is expected there: check the path",
    errno.EEXIST: "move it away, or choose another name",
}


def explain(error: Exception, place: object = None, kept: str = "") -> str:
    """One line for a failed file operation: the file, the reason, and what to do.

    place: where the program was reading or writing, for an error that carries no file name, such as those of writes to
    an open file and of safetensors, whose text ends in `(os error N)`. kept: names the files that are still intact.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match[1])
    names = [str(name) for name in (getattr(error, "filename", None), getattr(error, "filename2", None)) if name]
    where = " -> ".join(names) or (str(place) if place else "")
    reason = os.strerror(number) if number else str(error) or type(error).__name__
    advice = _ADVICE.get(number or 0, "")
    return "; ".join(filter(None, (f"{where}: {reason}" if where else reason, kept, advice)))


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?` for the most similar of the known names, or nothing."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else ""
