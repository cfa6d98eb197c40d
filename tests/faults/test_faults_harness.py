"""A harness that finds nothing must be known to find what is there."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.daemon_support import MARK
from tests.faults.__main__ import beds, named
from tests.faults.crowd import Crowd, Excuse, Failure, Keeping, Streaming, Tally
from tests.faults.places import Found, Place, unit_of
from tests.faults.stage import STEADY, Fault, Row, Stage, steady_ones
from tests.faults.table import table
from tests.faults.wire import CUT, REFUSED, UNHEARD, WRONG, Broken, ask

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"pid": 7}'


@asynccontextmanager
async def served(*answers: bytes) -> AsyncIterator[int]:
    """Serve one connection after another: an answer for each, then its end; yield the port."""
    left = [*answers]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def kind_of(*answers: bytes) -> str:
    async with served(*answers) as port:
        with pytest.raises(Broken) as broken:
            (await ask(port, "GET", "/")).succeeded()
        return broken.value.kind


# ---- how requests end


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", UNHEARD),
        (b"HTTP/1.1 200", CUT),
        (OK[:-1], CUT),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", CUT),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "status 503"),
    ],
)
async def test_every_bad_end_has_its_name(answer: bytes, kind: str) -> None:
    assert await kind_of(answer) == kind


async def test_a_refused_connection_is_told_from_a_closed_one() -> None:
    async with served() as port:
        pass
    with pytest.raises(Broken) as broken:
        await ask(port, "GET", "/")
    assert broken.value.kind == REFUSED


# ---- clients


class Nowhere(Place):
    """A place without a program, for clients that are given a port."""

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.port = port
        self.listed: dict[str, Found] = {}
        self.pids: dict[str, int] = {}
        self.says: dict[str, str] = {}

    async def units(self) -> dict[str, Found]:
        return self.listed

    async def running(self) -> dict[str, str]:
        return self.says

    async def main_pid(self, unit: str) -> int:
        return self.pids.get(unit, 0)


async def one_turn(client: Any) -> list[str]:
    await client._counted()
    return [failure.kind for failure in client.tally.failures]


async def test_a_kept_connection_that_was_closed_is_tried_again_once_and_counted() -> None:
    async with served(OK, OK) as port:
        client = Keeping(Nowhere(port), Tally(), [STEADY])
        assert await one_turn(client) == []
        assert await one_turn(client) == []
        assert (client.tally.sent, client.tally.retried) == (3, 1)
        client.leave()


async def test_a_new_connection_that_was_closed_is_lost() -> None:
    async with served(b"") as port:
        client = Keeping(Nowhere(port), Tally(), [STEADY])
        assert await one_turn(client) == [UNHEARD]
        assert client.tally.retried == 0


def streamed(*tokens: str, end: bytes = b"0\r\n\r\n") -> bytes:
    events = [f'data: {{"choices":[{{"delta":{{"content":"{token} "}}}}]}}\n\n' for token in tokens]
    chunks = [f"{len(event):x}\r\n{event}\r\n" for event in events]
    return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{''.join(chunks)}".encode() + end


DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        (streamed("0", "1", "2", end=DONE), []),
        (streamed("0", "2", "1", end=DONE), [WRONG]),
        (streamed("0", "1", end=DONE), [WRONG]),
        (streamed("0", "1", "2"), [CUT]),
        (streamed("0", "1", end=b""), [CUT]),
    ],
    ids=["whole", "out of order", "one missing", "without its end", "cut"],
)
async def test_a_stream_is_whole_or_lost(answer: bytes, kinds: list[str]) -> None:
    async with served(answer) as port:
        client = Streaming(Nowhere(port), Tally(), ["stream"])
        client.tokens = 3
        assert await one_turn(client) == kinds


# ---- excuses


def failed(began: float, ended: float, kind: str = CUT, model: str = "a") -> Failure:
    return Failure("client", model, kind, "", began, ended)


@pytest.mark.parametrize(
    ("failure", "is_excused"),
    [
        (failed(9, 11), True),
        (failed(12, 13), True),
        (failed(8, 9), False),
        (failed(21, 22), False),
        (failed(9, 11, REFUSED), False),
        (failed(9, 11, model="b"), False),
    ],
)
def test_only_what_was_under_way_then_and_there_is_excused(failure: Failure, is_excused: bool) -> None:
    assert Excuse([CUT], "a", 10, 20).covers(failure) is is_excused


# ---- the verdict


@pytest.fixture
def stage() -> Stage:
    async def strike(stage: Stage) -> None:
        pass

    place = Nowhere()
    stage = Stage(Fault("none", strike, (), 1, 1, steady_ones), place, "seed")
    alive = Found("active", "running")
    place.listed = {place.unit(model): alive for model in ("a", "b")}
    place.says = {"a": "ready", "b": "ready"}
    place.model_processes = lambda: {1: place.unit("a"), 2: place.unit("b")}  # type: ignore[method-assign]
    return stage


async def verdict(stage: Stage) -> None:
    await stage._exactly_these_run({"a", "b"})


async def test_all_is_well_if_each_runs_once(stage: Stage) -> None:
    await verdict(stage)


@pytest.mark.parametrize(
    "processes",
    [
        {1: "a", 2: "b", 3: ""},
        {1: "a", 2: "b", 3: "c"},
        {1: "a", 2: "b", 3: "b"},
        {1: "a"},
    ],
    ids=["in no unit", "in a unit that is not listed", "twice", "not at all"],
)
async def test_a_process_too_many_or_too_few_is_seen(stage: Stage, processes: dict[int, str]) -> None:
    place = stage.place
    units = {pid: place.unit(model) if model else "" for pid, model in processes.items()}
    place.model_processes = lambda: units  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        await verdict(stage)


@pytest.mark.parametrize("state", [Found("failed", "failed"), Found("activating", "start")])
async def test_a_unit_in_another_state_is_seen(stage: Stage, state: Found) -> None:
    stage.place.listed[stage.place.unit("a")] = state  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        await verdict(stage)


async def test_a_unit_that_nobody_wants_is_seen(stage: Stage) -> None:
    stage.place.listed[stage.place.unit("c")] = Found("active", "running")  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        await verdict(stage)


async def test_what_the_daemon_does_not_know_of_is_seen(stage: Stage) -> None:
    del stage.place.says["b"]  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        await verdict(stage)


async def test_another_process_than_before_is_seen_and_counted_once(stage: Stage) -> None:
    async with served(OK, OK) as port:
        stage.place.port = port
        stage.place.pids = {stage.place.unit("a"): 7}  # type: ignore[attr-defined]
        stage.pids = {"a": 6}
        with pytest.raises(AssertionError):
            await stage._each_is_who_it_was({"a"})
        await stage._each_is_who_it_was({"a"})
    assert stage.row.pids_changed == 1


async def test_an_answer_from_another_process_than_the_units_is_seen(stage: Stage) -> None:
    async with served(OK) as port:
        stage.place.port = port
        stage.place.pids = {stage.place.unit("a"): 8}  # type: ignore[attr-defined]
        with pytest.raises(AssertionError):
            await stage._each_is_who_it_was({"a"})


async def test_a_client_that_does_not_get_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.crowd.GETS_ON_WITHIN_S", 0.05)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    tally = Tally()
    clients = [Keeping(Nowhere(server.sockets[0].getsockname()[1]), tally, [STEADY])]
    async with server, Crowd(clients, tally).at_work() as crowd:
        with pytest.raises(AssertionError, match="Keeping steady"):
            await crowd.everyone_has_had_a_turn()


def test_processes_of_models_are_found_wherever_they_are() -> None:
    place = Nowhere()
    sleep = [sys.executable, "-c", "input()"]
    with subprocess.Popen(sleep, env={MARK: place.mark}, stdin=subprocess.PIPE) as process:
        assert place.model_processes() == {process.pid: ""}
        assert unit_of(process.pid) == ""
        process.kill()


# ---- the table


def test_a_table_tells_what_failed_and_why() -> None:
    good = Row("one", "here", runs=5, sent=100, longest_stall_ms=12)
    bad = Row("two", "there", runs=1, sent=9, failed={CUT: 2, REFUSED: 1}, problems=["run 1: lost"])
    text = table([good, bad])
    assert (good.is_good, bad.is_good) == (True, False)
    assert "2 cut, 1 refused" in text
    assert text.endswith("- two, there: run 1: lost\n")


@pytest.mark.parametrize(
    ("where", "played"),
    [
        ("private", {"private": ["private:private"]}),
        ("trixie, user", {"trixie": ["user:trixie, user"]}),
        ("trixie.*", {"trixie": ["system:trixie", "user:trixie, user"]}),
        ("bookworm|vm", {"bookworm": ["system:bookworm"], "vm": ["vm:vm"]}),
    ],
)
def test_a_place_is_chosen_by_its_name(where: str, played: dict[str, list[str]]) -> None:
    assert beds(named(where)) == played


def test_a_place_that_does_not_exist_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'trixi' matches none of: private; bookworm;"):
        named("trixi")
