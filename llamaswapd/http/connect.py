"""New connections to the models' servers: TCP, a proxy's tunnel, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import cache
from ipaddress import ip_address

from llamaswapd.errors import UpstreamError
from llamaswapd.http.tunnel import tunnel
from llamaswapd.http.upstream import OriginPool, Upstream

NO_LIMIT_S = 1e9  # where asyncio would take None for a default of its own
RECEIVE_BYTES = 64 * 1024  # the kernel takes twice that, for what it needs itself (socket(7))
LONGEST_KEEPALIVE_S = 32767  # tcp(7) takes no more


async def connect(pool: OriginPool) -> Upstream:
    """Open a connection; raises UpstreamError."""
    origin, limits = pool.origin, pool.timeouts
    try:
        async with asyncio.timeout(limits.connect or None):
            upstream = await _connected(pool)
        if origin.tls:
            await _secure(upstream, float(limits.tls_handshake or NO_LIMIT_S))
    except TimeoutError:
        raise UpstreamError(f"{origin} does not take connections: nothing for {limits.connect} s") from None
    except OSError as error:
        raise UpstreamError(f"{origin} does not take connections: {error.strerror or error}") from error
    if upstream.transport.is_closing():  # it will not be told so any more
        raise UpstreamError(f"{origin} closed the connection before it answered")
    keep_alive(upstream.transport, limits.keepalive)
    hold_little(upstream.transport)
    pool.add(upstream)
    return upstream


async def _connected(pool: OriginPool) -> Upstream:
    """Return a connection on which TLS has not been spoken yet."""
    origin, by_way = pool.origin, pool.by_way
    if by_way is not None and origin.tls:
        upstream = Upstream(pool)
        upstream.connection_made(await tunnel(by_way, origin))
        return upstream
    host, port = (by_way.host, by_way.port) if by_way is not None else (origin.host, origin.port)
    _, upstream = await pool.loop.create_connection(lambda: Upstream(pool), host, port)
    return upstream


async def _secure(upstream: Upstream, within_s: float) -> None:
    plain, pool = upstream.transport, upstream.pool
    try:
        secure = await pool.loop.start_tls(
            plain, upstream, tls_context(), server_hostname=pool.origin.host, ssl_handshake_timeout=within_s
        )
    except BaseException:
        plain.abort()
        raise
    if secure is None:  # the connection was lost in that very moment
        raise ConnectionResetError("the connection was closed behind the handshake")
    upstream.connection_made(secure)


def keep_alive(transport: asyncio.BaseTransport, period_s: int) -> None:
    """Have the kernel look whether the other side is still there (tcp(7)); 0: as often as it does by default."""
    sock = transport.get_extra_info("socket")
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if period_s > 0:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, min(period_s, LONGEST_KEEPALIVE_S))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(period_s, LONGEST_KEEPALIVE_S))


def hold_little(transport: asyncio.BaseTransport) -> None:
    """Have the kernel hold little of what a server on this machine says faster than the client reads.

    What it holds is read at once, and kept for the client. A network's latency asks for more; the loopback has none.
    """
    sock = transport.get_extra_info("socket")
    peer = transport.get_extra_info("peername")
    if isinstance(peer, tuple) and ip_address(peer[0].partition("%")[0]).is_loopback:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)


@cache
def tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()
