"""Can the activity be kept where the configuration says?"""

from __future__ import annotations

import errno
import os

from llamaswapd.config.report import Report, reason
from llamaswapd.config.schema import Config


def check_store(config: Config, report: Report) -> None:
    """Report that the activity cannot be kept where it is to be; the file may be missing, its directory may not."""
    path = config.store.path if config.store is not None else ""
    if not path.strip():
        return
    directory = os.path.dirname(path) or "."
    try:
        is_there, is_directory = os.path.lexists(path), os.path.isdir(path)
        if is_directory:
            problem = f"store.path: {path} is a directory, not a file"
        elif is_there and not os.access(path, os.W_OK):
            problem = f"store.path: {path} is not writable: {reason(errno.EACCES)}"
        elif not os.path.isdir(directory):
            problem = f"store.path: directory {directory} is not writable: {reason(errno.ENOENT)}; create it"
        elif not is_there and not os.access(directory, os.W_OK):
            problem = f"store.path: directory {directory} is not writable: {reason(errno.EACCES)}"
        else:
            return
    except ValueError as error:  # a NUL
        problem = f"store.path: {path!r}: {error}"
    report.error(("store", "path"), problem)
