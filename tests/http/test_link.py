"""One end of a connection by itself: what is sent at once, and what later."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from llamaswapd.http.link import LOOK_EVERY, MANY, NEVER, Link, Outbox


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

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def linked(ours: socket.socket, *, has_tls: bool = False, outbox: Outbox | None = None) -> tuple[Link, Transport]:
    link, transport = Link(outbox or Outbox(NEVER), has_tls=has_tls), Transport(ours)
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


class TestManyThatWriteInOneTurnOfTheLoop:
    @pytest.fixture
    async def outbox(self) -> Outbox:
        """One that keeps the next write that can wait, to see how many follow."""
        return Outbox(at_once=1)

    @pytest.fixture
    def link(self, pair: tuple[socket.socket, socket.socket], outbox: Outbox) -> Link:
        return linked(pair[0], outbox=outbox)[0]

    @pytest.fixture
    def sent(self, pair: tuple[socket.socket, socket.socket]) -> Callable[[], bytes]:
        """Return what has been sent since the last call."""

        def sent() -> bytes:
            with contextlib.suppress(BlockingIOError):
                return pair[1].recv(1000)
            return b""

        return sent

    async def test_are_sent_together_when_it_ends_in_their_order(self, link: Link, sent: Callable[[], bytes]) -> None:
        for number in range(MANY):
            link.write(b"%d" % number, True)
        assert sent() == b""
        await asyncio.sleep(0)
        assert sent() == b"0123"

    async def test_are_kept_in_the_next_one_too_until_they_are_few(self, link: Link, sent: Callable[[], bytes]) -> None:
        for count in (MANY, MANY - 1):
            for _ in range(count):
                link.write(b".", True)
            assert sent() == b""
            await asyncio.sleep(0)
            assert sent() == b"." * count
        for _ in range(LOOK_EVERY - 1):
            link.write(b".", True)
            assert sent() == b"."
        link.write(b".", True)  # to see whether they are many by now
        assert sent() == b""
        await asyncio.sleep(0)
        assert sent() == b"."

    async def test_are_many_although_some_could_not_wait(self, link: Link, sent: Callable[[], bytes]) -> None:
        link.write(b"1", True)
        link.write(b"token")
        for number in range(MANY - 1):
            link.write(b"%d" % number, True)
        assert sent() == b"1token012"
        await asyncio.sleep(0)
        link.share(True)  # which sends what is kept: nothing
        link.share(False)
        link.write(b"1", True)
        assert sent() == b""
        await asyncio.sleep(0)
        assert sent() == b"1"

    async def test_are_not_overtaken_by_what_cannot_wait(self, link: Link, sent: Callable[[], bytes]) -> None:
        link.write(b"head", True)
        link.write(b"token")
        assert sent() == b"headtoken"

    async def test_are_sent_before_their_connection_is_closed(self, link: Link, sent: Callable[[], bytes]) -> None:
        link.write(b"the end", True)
        link.hang_up()
        assert (sent(), link.transport.is_closing()) == (b"the end", True)

    async def test_are_sent_before_others_write_as_well_and_not_kept_then(
        self, link: Link, sent: Callable[[], bytes]
    ) -> None:
        link.write(b"1", True)
        link.share(True)
        assert sent() == b"1"
        link.write(b"2", True)
        assert sent() == b"2"

    async def test_do_not_lose_theirs_by_the_fault_of_one(
        self, outbox: Outbox, link: Link, sent: Callable[[], bytes]
    ) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            odd, transport = linked(ours, has_tls=True, outbox=outbox)
            transport.held = None  # type: ignore[assignment]
            odd.write(b"1", True)
            link.write(b"2", True)
            outbox.send()
        assert sent() == b"2"

    async def test_are_those_of_one_loop(self) -> None:
        assert Outbox.of_running_loop() is Outbox.of_running_loop()
