"""Requests that go on in another protocol, websockets above all: bytes pass both ways until either side closes.

RFC 9110 section 7.8. What the server says of the offer is the relay's business; here is what the client sends after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from llamaswapd.http.ordinary import Awaited


def wanted_protocol(request: web.BaseRequest) -> str:
    """Return the protocol that a request offers to go on in, "" if none that is passed on.

    HTTP/2 is not: it would carry requests past us. Nor is an offer with a body, of which nobody knows which of the two
    protocols it belongs to.
    """
    listed = ",".join(request.headers.getall("Connection", ())).lower()
    if "upgrade" not in (name.strip() for name in listed.split(",")) or request.body_exists:
        return ""
    protocol = str(request.headers.get("Upgrade", "")).strip()
    return "" if protocol.lower().startswith("h2") else protocol


@contextmanager
def passed_on(request: web.BaseRequest, relay: Awaited) -> Iterator[None]:
    """Pass on what the client sends behind the head of the request, for as long as the block lasts."""
    relay.keep_alive = False
    request.protocol.set_parser(_PassOn(relay))  # type: ignore[arg-type]
    yield


class _PassOn:
    """In aiohttp's eyes, the parser of the protocol that the connection goes on in."""

    def __init__(self, relay: Awaited) -> None:
        self._relay = relay

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._relay.send_on(data)
        return False, b""

    def feed_eof(self) -> None:
        """The connection's end is noticed elsewhere."""

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        """Likewise."""
