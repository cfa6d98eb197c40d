"""One end of a TCP connection as the relay wants it: what is written is sent at once.

Both sides of the relay are links, the client's and the model's. What is saved here is counted in microseconds, but for
every request and every token.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
from contextlib import suppress
from typing import cast

DISCARD_BYTES = 64 * 1024  # read at once of what nobody wants
DISCARD_READS = 64  # before the other side is taken to send without end


class Link(asyncio.BaseProtocol):
    """A connection; its transport must not be written to but by `write`, or while it is shared."""

    __slots__ = ("_direct", "_fd", "has_tls", "is_shared", "transport")

    transport: asyncio.Transport

    def __init__(self, *, has_tls: bool) -> None:
        self.has_tls = has_tls  # what is written is not what is sent then
        self.is_shared = False  # others write to the transport as well

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._fd = -1 if self.has_tls else transport.get_extra_info("socket").fileno()
        self._direct = -1  # the same, while the transport is known to hold nothing that has to go first

    def share(self, is_shared: bool) -> None:
        """Say whether others write to the transport as well from now on."""
        self.is_shared = is_shared
        self._direct = -1

    def write(self, data: bytes | bytearray) -> None:
        """Send bytes, which must stay as they are.

        A write of the transport's own waits for the end of the loop's turn (uvloop), which is late for a token.
        """
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
