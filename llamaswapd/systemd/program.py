"""Which file a model's command runs, and why it cannot be run.

systemd would look a bare name up in a PATH of its own and report a missing program as exit status 203; asked before,
the file system gives the reason in words.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Collection, Sequence

from llamaswapd.errors import NotStarted

# With these the unit has a root directory of its own, whose files are not the ones we see; systemd.exec(5).
OWN_ROOT = {"RootDirectory", "RootImage"}


def find(name: str, directory: str) -> str:
    """Return the absolute path of a program: looked up in our PATH if it has no slash, itself if it is not there."""
    path = os.path.join(directory, name) if "/" in name else shutil.which(name)
    return os.path.abspath(path) if path else name


def check(words: Sequence[str], directory: str, settings: Collection[str], *, is_for_others: bool = False) -> None:
    """Raise NotStarted, in llama-swap's words, if a command cannot be run with these unit settings.

    `is_for_others`: by whom it is run may see more than we do, so only what holds for everybody counts.
    """
    if not words:
        raise NotStarted("unable to get sanitized command: empty command")
    path = find(words[0], directory)
    if not path.startswith("/"):
        raise cannot_start(words, "executable file not found in $PATH")
    if not OWN_ROOT.intersection(settings) and (reason := _why_not_executable(path, is_for_others)):
        raise cannot_start(words, reason)


def cannot_start(words: Sequence[str], reason: str, log: Sequence[str] = ()) -> NotStarted:
    # The system's words begin with a capital letter, Go's do not.
    return NotStarted(f"failed to start command '{' '.join(words)}': {reason[:1].lower()}{reason[1:]}", log)


def _why_not_executable(path: str, is_for_others: bool) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        is_hidden_from_us = is_for_others and error.errno == errno.EACCES
        return "" if is_hidden_from_us else os.strerror(error.errno or errno.ENOENT)
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    may_execute = bool(mode & 0o111) if is_for_others else os.access(path, os.X_OK)
    return "" if may_execute else os.strerror(errno.EACCES)
