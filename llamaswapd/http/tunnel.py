"""Connections by way of the proxy that the environment names, as Go's net/http and curl take them.

`HTTP_PROXY` and `HTTPS_PROXY` name it, for origins of either scheme, `NO_PROXY` the hosts that are reached without it,
in either case. A server on this machine is never reached by way of another.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from llamaswapd.errors import UpstreamError

if TYPE_CHECKING:
    from llamaswapd.http.upstream import Origin

ANSWER_LIMIT = 64 * 1024  # bytes of the proxy's answer
SHOWN_BYTES = 200  # of an answer that is not understood

_CONNECTED = re.compile(rb"HTTP/1\.[01] 200(?: |$)")


class ByWay(NamedTuple):
    """A proxy on the way to an origin."""

    host: str
    port: int
    authorization: str  # value of Proxy-Authorization, "" for none


def by_way_of(origin: Origin) -> ByWay | None:
    """Return the proxy through which an origin is reached, None if it is reached directly; raises UpstreamError."""
    url = getproxies().get("https" if origin.tls else "http")
    if not url or is_loopback(origin.host):
        return None
    if any(_names(entry, origin) for entry in getproxies().get("no", "").lower().split(",")):
        return None
    name = "HTTPS_PROXY" if origin.tls else "HTTP_PROXY"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise UpstreamError(f'{name} "{url}" is not a URL: {error}') from None
    if parts.scheme != "http" or not parts.hostname:
        raise UpstreamError(f'{name} "{url}" is not a URL of the form http://host:port')
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    authorization = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
    return ByWay(parts.hostname, port or 80, authorization)


def _names(entry: str, origin: Origin) -> bool:
    """Whether an entry of NO_PROXY names a host: `*`, an address, a network, or a domain, the last two with a port.

    `example.com` means that domain and all below it, `.example.com` and `*.example.com` those below it only.
    """
    entry = entry.strip()
    if entry == "*":
        return True
    host = _address(origin.host)
    if host is not None and "/" in entry:
        with contextlib.suppress(ValueError):
            return host in ipaddress.ip_network(entry, strict=False)
        return False
    name, port = (entry, "") if _address(entry) is not None else _without_port(entry)
    if not name or port not in ("", str(origin.port)):
        return False
    if (address := _address(name.strip("[]"))) is not None:
        return address == host
    domain = name.removeprefix("*")
    return host is None and _is_in(origin.host.lower(), domain)


def _is_in(host: str, domain: str) -> bool:
    return host == domain or host.endswith(f".{domain.removeprefix('.')}")


def _without_port(entry: str) -> tuple[str, str]:
    name, colon, port = entry.rpartition(":")
    return (name, port) if colon and port.isdigit() else (entry, "")


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


async def tunnel(by_way: ByWay, origin: Origin) -> asyncio.Transport:
    """Have a proxy connect to an origin (RFC 9110 section 9.3.6); raises UpstreamError, OSError."""
    where = f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"
    loop = asyncio.get_running_loop()
    transport, request = await loop.create_connection(lambda: _Connect(where), by_way.host, by_way.port)
    try:
        await request.ask(by_way.authorization)
    except BaseException:
        transport.abort()
        raise
    return transport


class _Connect(asyncio.Protocol):
    """Asks a proxy for a tunnel."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._answer = bytearray()
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, authorization: str) -> None:
        lines = [f"CONNECT {self._where} HTTP/1.1", f"Host: {self._where}"]
        if authorization:
            lines.append(f"Proxy-Authorization: {authorization}")
        self._transport.write("\r\n".join((*lines, "", "")).encode())
        await self._answered
        status_line = self._answer.partition(b"\r\n")[0][:SHOWN_BYTES]
        if _CONNECTED.match(status_line) is None or b"\r\n\r\n" not in self._answer:
            raise UpstreamError(
                f"the proxy opens no tunnel to {self._where}: it answers {status_line.decode('latin-1')!r}"
            )

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if b"\r\n\r\n" in self._answer or len(self._answer) > ANSWER_LIMIT:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self._answered.done():
            self._answered.set_result(None)
