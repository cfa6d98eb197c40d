"""The load under which faults happen: clients of many kinds, and an account of every request they send."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.wire import CUT, UNHEARD, WRONG, Answer, Broken, Connection, ask, chat

if TYPE_CHECKING:
    from tests.faults.places import Place

SETTLED_S = 30.0  # for a reload to show
GETS_ON_WITHIN_S = 60.0
BREATH_S = 0.02  # after a failure, so that what is down is not hammered


@dataclass(frozen=True)
class Failure:
    """A request that came to nothing; `began` and `ended` by CLOCK_MONOTONIC."""

    client: str
    model: str
    kind: str
    detail: str
    began: float
    ended: float

    def __str__(self) -> str:
        return f"{self.client} ({self.model}), after {self.ended - self.began:.3f} s: {self.detail}"


@dataclass
class Excuse:
    """What cannot but fail: requests that were under way while something they need was taken away."""

    kinds: Collection[str]
    model: str  # "": every
    began: float
    ended: float = float("inf")

    def covers(self, failure: Failure) -> bool:
        overlaps = failure.began <= self.ended and failure.ended >= self.began
        return overlaps and failure.kind in self.kinds and self.model in ("", failure.model)


@dataclass
class Tally:
    """The account of a crowd's requests."""

    sent: int = 0
    retried: int = 0  # on a connection that had been closed between two requests, which RFC 9110 9.2.2 is about
    longest_stall_s: float = 0.0  # of clients whose model is there all the time
    failures: list[Failure] = field(default_factory=list)
    excuses: list[Excuse] = field(default_factory=list)

    @contextmanager
    def excused(self, *kinds: str, model: str = "") -> Iterator[None]:
        """Excuse such failures of requests that are under way at any time in the block."""
        excuse = Excuse(kinds, model, time.monotonic())
        self.excuses.append(excuse)
        try:
            yield
        finally:
            excuse.ended = time.monotonic()

    def lost(self) -> list[Failure]:
        """Return the failures for which there is no excuse."""
        return [failure for failure in self.failures if not self._is_excused(failure)]

    def ended_with_it(self) -> int:
        """Return how many failed that had to."""
        return sum(map(self._is_excused, self.failures))

    def _is_excused(self, failure: Failure) -> bool:
        return any(excuse.covers(failure) for excuse in self.excuses)

    def kinds(self) -> Counter[str]:
        return Counter(failure.kind for failure in self.lost())


class Client:
    """One client, which does the same again and again. A turn may be several requests."""

    models: Sequence[str] = ()  # what it needs
    pause_s = 0.005  # between two turns

    def __init__(self, place: Place, tally: Tally, models: Sequence[str]) -> None:
        self.place = place
        self.tally = tally
        self.models = models
        self.turns_begun = 0
        self.turns_ended = 0
        self.is_busy = False

    def __str__(self) -> str:
        return f"{type(self).__name__} {'/'.join(self.models)}"

    @property
    def port(self) -> int:
        return self.place.port

    async def turn(self) -> None:
        """Do it once; raises Broken or AssertionError."""
        raise NotImplementedError

    def leave(self) -> None:
        """Put away what is held between turns."""

    async def run(self, gate: asyncio.Event) -> None:
        try:
            while True:
                await gate.wait()
                self.turns_begun += 1
                self.is_busy = True
                await self._counted()
                self.is_busy = False
                self.turns_ended = self.turns_begun
                await asyncio.sleep(self.pause_s)
        finally:
            self.leave()

    async def _counted(self) -> None:
        self._began, self._asked = time.monotonic(), self.models[0]
        try:
            await self.turn()
        except Broken as error:
            self._note(error.kind, str(error))
            await asyncio.sleep(BREATH_S)
        except AssertionError as error:
            self._note(WRONG, str(error))

    def _note(self, kind: str, detail: str) -> None:
        failure = Failure(str(self), self._asked, kind, detail, self._began, time.monotonic())
        self.tally.failures.append(failure)

    def begins(self, model: str) -> None:
        """Note that a request goes out."""
        self.tally.sent += 1
        self._began, self._asked = time.monotonic(), model

    def stalled(self, seconds: float) -> None:
        self.tally.longest_stall_s = max(self.tally.longest_stall_s, seconds)

    async def chat(self, model: str, **body: object) -> int:
        """Ask a model on a new connection; return the pid that answers."""
        self.begins(model)
        return pid_in(await chat(self.port, model, **body))


def pid_in(answer: Answer) -> int:
    """Return the process that a model's answer comes from; raises Broken if it is no success."""
    return int(answer.succeeded().json()["pid"])


class Connecting(Client):
    """Connects for every request."""

    async def turn(self) -> None:
        await self.chat(self.models[0])
        self.stalled(time.monotonic() - self._began)


class WithoutPause(Connecting):
    """The same, as fast as it can."""

    pause_s = 0.0


class Keeping(Client):
    """Keeps its connection. Where that was closed between two requests, it may send the second again, once."""

    _connection: Connection | None = None

    async def turn(self) -> None:
        self.begins(self.models[0])
        kept, self._connection = self._connection, None
        if kept is None:
            await self._ask_on(await Connection.open(self.port))
        else:
            try:
                await self._ask_on(kept)
            except Broken as error:
                if error.kind != UNHEARD:
                    raise
                self.tally.retried += 1
                self.begins(self.models[0])
                await self._ask_on(await Connection.open(self.port))
        self.stalled(time.monotonic() - self._began)

    async def _ask_on(self, connection: Connection) -> None:
        try:
            pid_in(await connection.ask("POST", "/v1/chat/completions", {"model": self.models[0]}))
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable:
            self._connection = connection
        else:
            connection.close()

    def leave(self) -> None:
        if self._connection:
            self._connection.close()


class Streaming(Client):
    """Reads streams and counts their tokens."""

    tokens, gap_s = 40, 0.02

    async def turn(self) -> None:
        self.begins(self.models[0])
        connection = await Connection.open(self.port)
        try:
            await self._read(connection)
        finally:
            connection.close()

    async def _read(self, connection: Connection) -> None:
        question = {"model": self.models[0], "stream": True, "n": self.tokens, "gap": self.gap_s}
        expected, last_at = 0, time.monotonic()
        async for line in connection.lines("/v1/chat/completions", question):
            now = time.monotonic()
            self.stalled(now - last_at)
            last_at = now
            if line.startswith("data: [DONE]"):
                assert expected == self.tokens, f"the stream ended after {expected} of {self.tokens} tokens"
                return
            if line.startswith("data: "):
                token = told_token(line[6:])
                assert token == str(expected), f"token {token!r} where {expected} was due"
                expected += 1
        raise Broken(CUT, f"clean end after {expected} of {self.tokens} tokens, without [DONE]")


def told_token(data: str) -> str:
    """Return the text of an event; what is no token is an error that the stream tells of."""
    try:
        return str(json.loads(data)["choices"][0]["delta"]["content"]).strip()
    except (ValueError, KeyError, IndexError):
        raise Broken(CUT, f"told in the stream: {data[:300]}") from None


class Swapping(Client):
    """Asks models that cannot run beside each other, in turn."""

    pause_s = 0.02
    _next = 0

    async def turn(self) -> None:
        self._next += 1
        await self.chat(self.models[self._next % len(self.models)])


class Unloading(Client):
    """Loads a model and unloads it again."""

    pause_s = 0.1

    async def turn(self) -> None:
        await self.chat(self.models[0])
        self.begins(self.models[0])
        (await ask(self.port, "POST", f"/api/models/unload/{self.models[0]}")).succeeded()


class Reloading(Client):
    """Changes one model in the configuration, reloads, and asks it until it is the new one."""

    pause_s = 0.2

    async def turn(self) -> None:
        self.begins(self.models[0])
        version = await self.place.change(self.models[0])
        deadline = time.monotonic() + SETTLED_S
        while self.place.version_of(await self.chat(self.models[0])) != version:
            assert time.monotonic() < deadline, f"the change of {self.models[0]} has no effect"
            await self.place.reload_if_missed()


@dataclass
class Crowd:
    """All clients together: they can be halted, and each be seen to get on."""

    clients: Sequence[Client]
    tally: Tally
    _gate: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Crowd]:
        self._gate.set()
        tasks = [asyncio.create_task(client.run(self._gate), name=str(client)) for client in self.clients]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task

    async def everyone_has_had_a_turn(self) -> None:
        """Return when every client has ended a turn that began after this call."""
        begun = {client: client.turns_begun for client in self.clients}
        await self._until(lambda client: client.turns_ended > begun[client])

    async def pause(self) -> None:
        """Let everyone end their turn and begin no other."""
        self._gate.clear()
        await self._until(lambda client: not client.is_busy)

    def resume(self) -> None:
        self._gate.set()

    async def _until(self, condition: Callable[[Client], bool]) -> None:
        deadline = time.monotonic() + GETS_ON_WITHIN_S
        while late := [str(client) for client in self.clients if not condition(client)]:
            assert time.monotonic() < deadline, f"clients that do not get on: {', '.join(late)}"
            await asyncio.sleep(0.005)
