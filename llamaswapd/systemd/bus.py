"""One connection to a D-Bus bus, from its opening to its end.

The only importer of the D-Bus library, and of that only the part which dbus-next and its continuation dbus-fast share.
Messages are sent by hand: introspection and proxy objects would cost two round trips and milliseconds of CPU each.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from llamaswapd.errors import BusLost, UnitError

try:
    # Before 2.12 it counts characters where D-Bus counts bytes, and the bus hangs up on the first non-ASCII text.
    if tuple(map(int, metadata.version("dbus-fast").split(".")[:2])) < (2, 12):
        raise ImportError
    import dbus_fast as dbus
    from dbus_fast.aio import MessageBus
except ImportError:
    import dbus_next as dbus  # type: ignore[no-redef]
    from dbus_next.aio import MessageBus  # type: ignore[assignment,attr-defined]

CALL_TIMEOUT_S = 30.0  # more than the 25 s that the bus waits for a service which it has started for a call

BUS = "org.freedesktop.DBus"  # the name of the bus itself

variant = dbus.Variant


@dataclass(frozen=True)
class Call:
    """A method call; `body` has the types that `signature` says."""

    destination: str
    path: str
    interface: str
    member: str
    signature: str = ""
    body: tuple[object, ...] = ()
    callee: str = "systemd"  # in error messages


class Refused(UnitError):
    """The call was answered with a D-Bus error: `name`, `text`, and what came behind the text."""

    def __init__(self, call: Call, name: str, text: str, details: Sequence[Any] = ()) -> None:
        self.name, self.text, self.details = name, text, details
        subject = call.body[0] if call.body else ""
        super().__init__(f"{call.callee} refused {call.member} {subject}: {text} ({name})")


Answer = list[Any] | Refused


@dataclass(frozen=True)
class Asked:
    """A method call that has come to us, to be answered by `Bus.reply` or `Bus.refuse`."""

    sender: str  # the caller's unique name
    path: str
    interface: str
    member: str
    signature: str
    body: list[Any]
    serial: int
    expects_reply: bool


class Bus:
    """A connection. `received` gets its signals: member, path, body; `asked` its method calls, and says which it takes.

    What it does not take the library answers: by org.freedesktop.DBus.Peer, or with the error that nobody has it.
    Signals are the bus's own, and those of whom one has said that they are to be heard: to the system's bus every local
    user can connect, and send anybody a signal that says anything.
    """

    def __init__(
        self,
        library: MessageBus,
        received: Callable[[str, str, list[Any]], None],
        asked: Callable[[Asked], bool] = lambda asked: False,
    ) -> None:
        self._library = library
        self._received = received
        self._asked = asked
        self._heard = {BUS}  # names of connections
        self._heeding: dict[int, tuple[Call, Callable[[Answer], None]]] = {}  # by the serial of the call
        self.lost = asyncio.create_task(self._end(), name="end of a connection to the bus")  # returns what ended it
        library.add_message_handler(self._take)

    @classmethod
    async def open(
        cls,
        address: str,
        received: Callable[[str, str, list[Any]], None],
        asked: Callable[[Asked], bool] = lambda asked: False,
    ) -> Bus:
        """Connect; raises whatever went wrong: OSError, EOFError, the library's AuthError ..."""
        library = _MessageBus(bus_address=address)
        try:
            await library.connect()
        except BaseException:
            library.give_up()
            raise
        return cls(library, received, asked)

    @property
    def is_connected(self) -> bool:
        return bool(self._library.connected)

    def hear(self, sender: str) -> None:
        """Pass on the signals of a connection, too; `sender` is its unique name."""
        self._heard.add(sender)

    def hang_up(self) -> None:
        """End it; whoever waits for an answer gets BusLost."""
        if self.is_connected:
            self._library.disconnect()

    async def close(self) -> None:
        """End it, and return when all that it held is given back. May be called twice."""
        self.hang_up()
        await asyncio.wait((self.lost,))
        close_socket(self._library)

    async def call(self, call: Call, heed: Callable[[Answer], None] = lambda answer: None) -> list[Any]:
        """Call a method, return its answer; raises Refused, BusLost, or UnitError when none comes in time.

        `heed` gets the answer before any signal that came behind it: the caller's turn is later.
        """
        if not self.is_connected:
            raise BusLost("not connected to the bus")
        message = _message(call)
        message.serial = self._library.next_serial()
        self._heeding[message.serial] = call, heed
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                reply = await self._library.call(message)
        except TimeoutError:
            raise UnitError(f"{call.callee} did not answer {call.member} within {CALL_TIMEOUT_S:g} s") from None
        except (OSError, EOFError) as error:
            raise BusLost(f"the bus hung up during {call.member}: {error}") from error
        finally:
            self._heeding.pop(message.serial, None)
        if reply is None:  # both libraries end pending calls so when the connection is closed on purpose
            raise BusLost(f"the connection to the bus was closed during {call.member}")
        answer = _answer(call, reply)
        if isinstance(answer, Refused):
            raise answer
        return answer

    def post(self, call: Call) -> None:
        """Call a method whatever it answers, if there is still somebody to answer."""
        if self.is_connected:
            self._library.send(_message(call))

    def reply(self, asked: Asked, signature: str = "", body: Sequence[object] = ()) -> None:
        """Answer a method call, if there is still somebody to answer."""
        self._send_back(asked, signature, body, message_type=dbus.MessageType.METHOD_RETURN)

    def refuse(self, asked: Asked, name: str, signature: str, body: Sequence[object]) -> None:
        """Answer a method call with the error `name`; the first part of `body` is its text."""
        self._send_back(asked, signature, body, message_type=dbus.MessageType.ERROR, error_name=name)

    def _send_back(self, asked: Asked, signature: str, body: Sequence[object], **kind: Any) -> None:
        if not self.is_connected or not asked.expects_reply:
            return
        message = dbus.Message(
            destination=asked.sender, reply_serial=asked.serial, signature=signature, body=list(body), **kind
        )
        self._library.send(message)

    def _take(self, message: Any) -> bool | None:
        """Pass a message on; true for one that the library need not answer any more."""
        if message.message_type is dbus.MessageType.METHOD_CALL:
            return self._asked(_asked(message))
        if message.message_type is dbus.MessageType.SIGNAL:
            if message.sender in self._heard:
                self._received(message.member, message.path, message.body)
        elif message.reply_serial in self._heeding:
            call, heed = self._heeding.pop(message.reply_serial)
            heed(_answer(call, message))
        return None

    async def _end(self) -> str:
        try:
            await self._library.wait_for_disconnect()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever ended the library's reader
            return str(error) or "the bus hung up"
        return "it was closed"


def values(variants: Mapping[str, Any]) -> dict[str, Any]:
    """Return properties as they come over the bus (`a{sv}`) without their wrapping."""
    return {name: value.value for name, value in variants.items()}


def close_socket(library: MessageBus) -> None:
    """Close what dbus-next and older versions of dbus-fast leave open when they disconnect."""
    for part in (library._stream, library._sock):
        if part:
            part.close()


def _message(call: Call) -> Any:
    return dbus.Message(
        destination=call.destination,
        path=call.path,
        interface=call.interface,
        member=call.member,
        signature=call.signature,
        body=list(call.body),
    )


def _answer(call: Call, reply: Any) -> Answer:
    body: list[Any] = reply.body
    if reply.message_type is not dbus.MessageType.ERROR:
        return body
    text, *details = body or ["no reason given"]
    return Refused(call, str(reply.error_name), text, details)


def _asked(message: Any) -> Asked:
    expects_reply = not message.flags & dbus.MessageFlag.NO_REPLY_EXPECTED
    return Asked(
        message.sender or "",
        message.path or "",
        message.interface or "",
        message.member or "",
        message.signature,
        message.body,
        message.serial,
        expects_reply,
    )


class _Loop:
    """The loop as the library sees it: from when the bus has hung up, its reader is called until it has found the end.

    dbus-fast's reads what one recv(2) gets it, and relies on being called again. uvloop does not if the socket has an
    error, too, which it gets from a bus that goes and has not read all that it was sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, has_found_it: Callable[[], bool]) -> None:
        self._loop = loop
        self._has_found_it = has_found_it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, descriptor: int, read: Callable[[], None]) -> None:
        errors = select.poll()
        errors.register(descriptor, 0)

        def read_to_the_end() -> None:
            read()
            while not self._has_found_it() and errors.poll(0):
                read()

        self._loop.add_reader(descriptor, read_to_the_end)


class _MessageBus(MessageBus):
    """The library's, with some faults less that show when a bus is restarted."""

    _descriptor = -1  # of the socket, also when the library has forgotten it

    def __init__(self, bus_address: str) -> None:
        super().__init__(bus_address)
        self._loop = _Loop(self._loop, lambda: self._disconnected)  # type: ignore[assignment]

    def send(self, msg: Any) -> asyncio.Future[None]:  # type: ignore[override]
        try:
            sent: asyncio.Future[None] = super().send(msg)
        except OSError:
            # The bus has hung up, which dbus-fast found by writing: it has closed the socket, told everybody who waits,
            # and tried to write on.
            assert self._writer is not None
            assert self._writer.fut is not None
            sent = self._writer.fut
        # A call that could not be sent is not answered either; without this, asyncio complains that nobody has asked.
        sent.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
        return sent

    def give_up(self) -> None:
        """Undo a `connect` that has failed or was cancelled half-way, which dbus-next leaves to the collector.

        dbus-fast undoes it, but for the writer that it has from the answer to its Hello on. uvloop would go on to watch
        the closed descriptor, and abort the process as soon as that is another's.
        """
        if self._descriptor >= 0:
            self._loop.remove_writer(self._descriptor)
        if self._fd is None:  # never connected, or done by dbus-fast itself
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        close_socket(self)

    def _setup_socket(self) -> None:  # dbus-next and older versions of dbus-fast connect in the constructor
        try:
            super()._setup_socket()  # type: ignore[misc]
        except BaseException:
            close_socket(self)
            raise

    async def _auth_readline(self) -> str:
        # dbus-next's, and that of older versions of dbus-fast, reads on for ever where the bus has hung up, and never
        # lets anything else run.
        assert self._sock
        self._descriptor = self._sock.fileno()
        line = b""
        while not line.endswith(b"\r\n"):
            byte = await self._loop.sock_recv(self._sock, 1)
            if not byte:
                raise EOFError("the bus hung up during authentication")
            line += byte
        return line[:-2].decode()
