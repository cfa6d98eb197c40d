"""The way to a file: everything that decides what is at a path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

MOST_LINKS = 40  # path_resolution(7)


def steps(path: str, readlink: Callable[[str], str] = os.readlink) -> Iterator[tuple[str, bool]]:
    """Yield every step from / to what is at an absolute path, and whether it is a symbolic link.

    Where a link leads is gone to like the rest, up to as many links as the kernel follows. What does not exist is gone
    on from as if it did. `readlink` raises OSError for what is no link.
    """
    ahead, here, links = path.split("/")[::-1], "/", 0
    yield here, False
    while ahead:
        there = os.path.normpath(os.path.join(here, ahead.pop()))
        if there == here:
            continue
        try:
            target = readlink(there)
        except OSError:
            yield there, False
            here = there
            continue
        yield there, True
        links += 1
        if links > MOST_LINKS:
            return
        ahead += target.split("/")[::-1]
        if target.startswith("/"):
            here = "/"
