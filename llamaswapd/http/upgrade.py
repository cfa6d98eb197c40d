"""Requests that go on as a websocket: bytes pass both ways until either side closes.

RFC 9110 section 7.8, RFC 6455. What the server says of the offer is the relay's business; here is what the client sends
after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from llamaswapd.http.awaited import Awaited


def offers_websocket(request: web.BaseRequest) -> bool:
    """Whether a request wants a websocket, as llama-swap tells it: the words need only occur."""
    return "upgrade" in _joined(request, "Connection") and "websocket" in _joined(request, "Upgrade")


def wanted_protocol(request: web.BaseRequest) -> str:
    """Return the protocol that a request offers to go on in, "" if none that is passed on.

    Websockets are, and nothing else: HTTP/2 would carry requests past us, also where it is one of several offers. Nor
    is an offer with a body, of which nobody knows which of the two protocols it belongs to.
    """
    if request.version < (1, 1) or request.body_exists:
        return ""
    if "upgrade" not in (name.strip() for name in _joined(request, "Connection").split(",")):
        return ""
    return "websocket" if _joined(request, "Upgrade").strip() == "websocket" else ""


def _joined(request: web.BaseRequest, name: str) -> str:
    return ",".join(request.headers.getall(name, ())).lower()


@contextmanager
def passed_on(request: web.BaseRequest, relay: Awaited) -> Iterator[None]:
    """Pass on what the client sends behind the head of the request, for as long as the block lasts.

    No other request is read from the connection, whether the server agrees or not: what is sent behind the offer may
    be of either protocol.
    """
    relay.keep_alive = False
    request.protocol.set_parser(_PassOn(relay))  # type: ignore[arg-type]
    try:
        yield
    finally:
        request.protocol.close()  # when the request has been answered


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
