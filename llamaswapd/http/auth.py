"""Who may ask: the keys that clients present against those of the configuration."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping

from llamaswapd.errors import Unauthorized


def authorize(headers: Mapping[str, str], api_keys: Iterable[str]) -> None:
    """Raise Unauthorized unless the request presents one of the keys. Takes equally long whichever key it is."""
    presented = presented_key(headers)
    known = False
    for key in api_keys:
        known |= hmac.compare_digest(presented, key.encode(errors="surrogateescape"))
    if not known:
        raise Unauthorized


def presented_key(headers: Mapping[str, str]) -> bytes:
    """Return the key of a request, b"" if there is none.

    An `Authorization` from which a key can be read hides `x-api-key`, even if that key is wrong.
    """
    scheme, _, rest = headers.get("Authorization", "").partition(" ")
    match scheme.lower():
        case "basic":
            key = _password(rest)
        case "bearer":
            key = rest.encode(errors="surrogateescape")
        case _:
            key = b""
    return key or headers.get("x-api-key", "").encode(errors="surrogateescape")


def _password(credentials: str) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return b""
