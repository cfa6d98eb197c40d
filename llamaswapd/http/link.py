"""One end of a TCP connection as the relay wants it: what is written is sent at once, or with what others write.

Both sides of the relay are links, the client's and the model's. What is saved here is counted in microseconds, but for
every request and every token.

To send something wakes whoever waits for it, on another core. Where a few programs wait for many answers, each is woken
again and again, and that costs more than what is sent. So as soon as many answers are written in one turn of the loop,
they are kept until its end, and sent in one go: who is woken by the first finds the others, too. (With 128 connections
that is a tenth of all CPU time.) For few it would be late, and the turn's end is not to be had for nothing. Requests
are sent at once, as a model has more to do than whoever reads its answer, and tokens, as they would come in bursts.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import termios
from contextlib import suppress
from typing import cast
from weakref import WeakKeyDictionary

DISCARD_BYTES = 64 * 1024  # read at once of what nobody wants
DISCARD_READS = 64  # before the other side is taken to send without end

MANY = 4  # writes in one turn of the loop, from which on they are sent together
LOOK_EVERY = 64  # writes that are sent at once before the next look whether there are many
NEVER = 2**40

log = logging.getLogger(__name__)


class Outbox:
    """What clients are sent in this turn of the loop, if that is much. Each link's bytes stay in their order."""

    __slots__ = ("_sent", "at_once", "kept")

    def __init__(self, at_once: int = LOOK_EVERY) -> None:
        self.at_once = at_once  # so many writes, less one, are sent at once; then one is kept, to see how many follow
        self.kept: list[tuple[Link, bytes | bytearray]] = []
        self._sent = 0  # that were kept in this turn

    @classmethod
    def of_running_loop(cls) -> Outbox:
        return _outboxes.setdefault(asyncio.get_running_loop(), cls())

    def keep(self, link: Link, data: bytes | bytearray) -> None:
        """Keep what is the first of this turn of the loop."""
        self.kept.append((link, data))
        asyncio.get_running_loop().call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self.send()
        were_many = self._sent - self.at_once >= MANY  # what came behind a `send` was sent at once, and counted there
        self.at_once, self._sent = 1 if were_many else LOOK_EVERY, 0

    def send(self) -> None:
        """Send what is kept, as somebody cannot wait, or the turn ends."""
        kept, self.kept = self.kept, []
        self._sent += len(kept)
        for link, data in kept:
            try:
                link.write(data)
            except Exception:  # of a transport: the others must not lose theirs
                log.exception("unexpected error while sending")


_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()
_keeps_nothing = Outbox(NEVER)  # for links to models, and those whose transport others write to as well


class Link(asyncio.BaseProtocol):
    """A connection; its transport must not be written to but by `write`, or while it is shared."""

    __slots__ = ("_direct", "_fd", "_outbox", "has_tls", "is_shared", "outbox", "transport")

    transport: asyncio.Transport

    def __init__(self, outbox: Outbox = _keeps_nothing, *, has_tls: bool) -> None:
        self.has_tls = has_tls  # what is written is not what is sent then
        self.is_shared = False  # others write to the transport as well
        self.outbox = self._outbox = outbox

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._fd = -1 if self.has_tls else transport.get_extra_info("socket").fileno()
        self._direct = -1  # the same, while the transport is known to hold nothing that has to go first

    def share(self, is_shared: bool) -> None:
        """Say whether others write to the transport as well from now on."""
        self.outbox.send()
        self._outbox = _keeps_nothing if is_shared else self.outbox
        self.is_shared = is_shared
        self._direct = -1

    def write(self, data: bytes | bytearray, can_wait: bool = False) -> None:
        """Send bytes, which must stay as they are; if they `can_wait`, perhaps in the end of this turn of the loop.

        A write of the transport's own always waits for that (uvloop), which is late for a token.
        """
        outbox = self._outbox
        if can_wait:
            if outbox.kept:
                outbox.kept.append((self, data))
                return
            outbox.at_once -= 1
            if not outbox.at_once:
                outbox.keep(self, data)
                return
        elif outbox.kept:
            outbox.send()  # there may be some of this link's
        transport = self.transport
        if transport.is_closing():  # its descriptor may be another connection's by now
            return
        sent, fd = 0, self._direct
        if fd < 0 and not transport.get_write_buffer_size():
            fd = self._fd
            if not self.is_shared:
                self._direct = fd
        if fd >= 0:
            try:
                sent = os.write(fd, data)
                if sent == len(data):
                    return
            except OSError:  # the socket is full, or broken, which the transport will notice and tell
                pass
            self._direct = -1
        transport.write(memoryview(data)[sent:] if sent else data)

    def hang_up(self) -> None:
        """Close the connection when what has been written is sent."""
        self.outbox.send()
        self.transport.close()

    @property
    def has_waited(self) -> bool:
        """Whether the last of what was written may have waited in the transport, which reads nothing once it closes."""
        return self._direct < 0

    @property
    def has_unread(self) -> bool:
        """Whether the other side has sent something that has not been read, if only a part of a TLS record."""
        if self.transport.is_closing():
            return False
        with suppress(OSError):
            waiting = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
            return any(waiting)
        return False

    def discard_unread(self) -> None:
        """Drop what has not been read; for `connection_lost`, after which the descriptor is closed.

        The kernel tells the end of a connection with unread bytes by a reset, at which the other side may lose the
        answer. Of TLS the descriptor may be gone already, and nothing is done.
        """
        if self._fd < 0:
            return
        with suppress(OSError):
            for _ in range(DISCARD_READS):
                if len(os.read(self._fd, DISCARD_BYTES)) < DISCARD_BYTES:
                    return
