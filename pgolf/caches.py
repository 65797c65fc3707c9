"""A home folder for libraries that need one.

For a user who has none (a container that runs under a bare user id) numba, torch's compiler, triton, matplotlib and the
hub's client fail, or make a folder called `~` in the working folder.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path


def ensure_home() -> None:
    """Give this process and its children a private, temporary home where `HOME`, or the folder of caches in it,
    cannot be written in.

    Its contents are deleted with the process. Nothing is shared between users: the folder is new and of mode 700.
    """
    if os.name != "posix":
        return
    if not os.environ.keys() & {"USER", "LOGNAME"}:
        os.environ["USER"] = f"user{os.getuid()}"  # torch's compiler asks for a name, which not every id has
    home = os.environ.get("HOME", "")
    cache = os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    if _usable(home) and (_usable(cache) or not Path(cache).exists()):
        return
    folder, owner = tempfile.mkdtemp(prefix="pgolf-home-"), os.getpid()
    if not _usable(home):
        os.environ["HOME"] = folder
    os.environ["XDG_CACHE_HOME"] = folder
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)


def _usable(folder: str) -> bool:
    return Path(folder).is_absolute() and Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)
