from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from fake_model import OK, FakeModel, fixed, until

from llamaswapd.config.schema import Timeouts
from llamaswapd.errors import UpstreamError
from llamaswapd.http import connect as connect_module
from llamaswapd.http.connect import connect
from llamaswapd.http.upstream import Origin, OriginPool, Upstream

LIMITS = Timeouts()


async def test_a_server_that_takes_no_connections_is_an_error_in_time() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fill = [socket.socket() for _ in range(2)]  # the backlog is full then, and what comes is not answered
        for each in fill:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        with pytest.raises(UpstreamError, match="does not take connections: nothing for 1 s"):
            await connect(OriginPool(Origin("127.0.0.1", port, False), LIMITS.having(connect=1)))
        for each in fill:
            each.close()


@pytest.mark.parametrize("period_s", [0, 7])
async def test_the_kernel_looks_whether_the_server_is_still_there(
    period_s: int,
) -> None:
    server = FakeModel(fixed(OK))
    await server.start()
    upstream = await connect(OriginPool(Origin("127.0.0.1", server.port, False), LIMITS.having(keepalive=period_s)))
    sock = upstream.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
    assert idle_s == (period_s or int(Path("/proc/sys/net/ipv4/tcp_keepalive_time").read_text()))
    upstream.abort()
    await server.close()


async def test_the_kernel_holds_little_of_what_a_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module, "RECEIVE_BYTES", 20_000)  # no kernel's default
    server = FakeModel(fixed(OK))
    await server.start()
    upstream = await connect(OriginPool(Origin("127.0.0.1", server.port, False), LIMITS))
    sock = upstream.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 40_000
    upstream.abort()
    await server.close()


async def test_a_server_that_closes_while_it_is_connected_to_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    connected = connect_module._connected

    async def late(pool: OriginPool) -> Upstream:
        upstream = await connected(pool)
        await until(upstream.transport.is_closing)
        return upstream

    def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    monkeypatch.setattr(connect_module, "_connected", late)
    server = await asyncio.start_server(close, "127.0.0.1", 0)
    pool = OriginPool(Origin("127.0.0.1", server.sockets[0].getsockname()[1], False), LIMITS)
    with pytest.raises(UpstreamError, match="closed the connection before it answered"):
        await connect(pool)
    assert not pool._all
    server.close()
