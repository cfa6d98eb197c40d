"""One end of a connection by itself: what is sent at once, and what later."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from llamaswapd.http.link import Link


class Transport:
    """A transport over one end of a socket pair; remembers what it was told to write."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.held: list[bytes | memoryview] = []  # as they are: some transports send later what they were given
        self.is_closed = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self.sock if name == "socket" else default

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    @property
    def waiting(self) -> bytes:
        return b"".join(self.held)

    def write(self, data: bytes | memoryview) -> None:
        self.held.append(data)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def linked(ours: socket.socket, *, has_tls: bool = False) -> tuple[Link, Transport]:
    link, transport = Link(has_tls=has_tls), Transport(ours)
    link.connection_made(transport)  # type: ignore[arg-type]
    return link, transport


def test_what_the_socket_takes_is_sent_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    link, transport = linked(pair[0])
    link.write(b"now")
    link.write(b"and then")
    assert (pair[1].recv(100), transport.waiting) == (b"nowand then", b"")


def test_what_the_socket_does_not_take_is_sent_by_the_transport_in_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    link, transport = linked(pair[0])
    data = os.urandom(4 * 1024 * 1024)
    link.write(data)
    link.write(b"later")  # with something waiting
    received = b""
    while len(received) + len(transport.waiting) < len(data) + 5:
        received += pair[1].recv(1024 * 1024)
    assert transport.waiting
    assert received + transport.waiting == data + b"later"


def test_what_has_waited_is_gone_before_the_next_is_sent_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    link, transport = linked(pair[0])
    link.write(bytes(4 * 1024 * 1024))
    link.write(b"a")
    assert transport.waiting.endswith(b"a")
    with contextlib.suppress(BlockingIOError):
        while pair[1].recv(1024 * 1024, socket.MSG_DONTWAIT):
            pass
    transport.held.clear()
    link.write(b"b")
    assert (pair[1].recv(10), transport.waiting) == (b"b", b"")


def test_what_others_have_written_is_not_overtaken(pair: tuple[socket.socket, socket.socket]) -> None:
    link, transport = linked(pair[0])
    link.write(b"1")
    link.share(True)
    link.write(b"2")  # at once, as long as nothing waits
    transport.write(b"3")
    link.write(b"4")
    link.share(False)
    link.write(b"5")
    assert (pair[1].recv(10), transport.waiting) == (b"12", b"345")


@pytest.mark.parametrize("has_tls", [True, False])
def test_nothing_is_written_past_a_transport_that_encrypts_or_is_closing(
    pair: tuple[socket.socket, socket.socket], has_tls: bool
) -> None:
    link, transport = linked(pair[0], has_tls=has_tls)
    transport.is_closed = not has_tls
    link.write(b"secret")
    assert transport.waiting == (b"secret" if has_tls else b"")
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


def test_a_broken_socket_is_the_transports_business(pair: tuple[socket.socket, socket.socket]) -> None:
    link, transport = linked(pair[0])
    pair[1].close()
    link.write(b"lost")
    assert transport.waiting == b"lost"
