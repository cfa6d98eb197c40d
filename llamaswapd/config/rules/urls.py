"""Which texts can be the base URL of a server."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_IN_HOST = re.compile(r"[{}|\\^`]")  # those that Go's net/url does not take, but for blanks
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}")


def base_url_problem(url: str, example: str) -> str | None:
    """Return what keeps a text from being the URL of an HTTP server; `example` is one that would do."""
    if problem := url_problem(url):
        return problem
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return f'"{url}" does not start with http:// or https://; write one such as {example}'
    if bad := _BAD_IN_HOST.search(parts.netloc):
        return f'"{url}": invalid character "{bad[0]}" in host name'
    if not parts.hostname or " " in parts.netloc:
        return f'"{url}" names no host; write one such as {example}'
    return None


def url_problem(text: str) -> str | None:
    """Return what keeps a text from being a URL, or the part of one."""
    if _CONTROL.search(text):
        return f"{text!r} holds a control character"
    try:
        url = urlsplit(text)
        _ = url.port  # raises where it is no number or too large
    except ValueError as error:
        return f'"{text}": {error}'
    if bad := _BAD_ESCAPE.search(url.netloc + url.path):
        return f'invalid URL escape "{bad[0]}"'
    return None
