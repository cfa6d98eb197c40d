from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from multidict import CIMultiDict
from standins import Client, Engine, House, house, model

from llamaswapd.core.lifecycle import State
from llamaswapd.errors import UnitError
from llamaswapd.http import server, streams
from llamaswapd.observe.inflight import InflightEntry


class Reader:
    """Reads the event stream strictly: every byte must be accounted for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._buffer = b""

    async def frame(self) -> bytes:
        while b"\n\n" not in self._buffer:
            self._buffer += await self._client.chunk()
        frame, _, self._buffer = self._buffer.partition(b"\n\n")
        return frame

    async def event(self) -> tuple[str, Any]:
        frame = await self.frame()
        assert frame.startswith(b'event:message\ndata:{"type":')
        envelope = json.loads(frame.removeprefix(b"event:message\ndata:"))
        assert list(envelope) == ["type", "data"]
        return envelope["type"], json.loads(envelope["data"])

    async def events(self, count: int) -> list[tuple[str, Any]]:
        return [await self.event() for _ in range(count)]

    async def next_of(self, kind: str) -> Any:
        while True:
            found, data = await self.event()
            if found == kind:
                return data


async def watch(it: House) -> Reader:
    reader = Reader(await it.stream("/api/events"))
    await reader.events(6)
    return reader


async def test_the_head_says_that_these_are_server_sent_events() -> None:
    async with house(Engine()) as it:
        client = await it.connect()
        await client.send("/api/events")
        head = await client.head()
    expected = {
        "content-type": "text/event-stream",
        "cache-control": "no-cache",
        "connection": "keep-alive",
        "x-content-type-options": "nosniff",
        "x-accel-buffering": "no",
    }
    assert head.status == 200
    assert expected.items() <= head.headers.items()


async def test_a_reader_is_first_told_how_things_are() -> None:
    engine = Engine(model("b", name="B", description="second", unlisted=True), model("a", aliases=("x", "y")))
    engine.past = [("a", "one"), ("b", "two")]
    engine.become("b", State.STARTING)
    async with house(engine) as it:
        it.write_own_line("own")
        it.observer.inflight.add(InflightEntry("a", "POST", "/v1/chat/completions", CIMultiDict(), "10.0.0.1"))
        events = await Reader(await it.stream("/api/events")).events(6)
    assert [kind for kind, _ in events] == [
        "logData",
        "logData",
        "modelStatus",
        "uiConfig",
        "profileChanged",
        "inflight",
    ]
    own, upstream, status, ui, profile, inflight = (data for _, data in events)
    assert own == {"source": "proxy", "data": "[INFO] own\n"}
    assert upstream == {"source": "upstream", "data": "one\ntwo\n"}
    plain = {"name": "", "description": "", "unlisted": False, "peerID": ""}
    assert status == [
        plain | {"id": "a", "state": "stopped", "aliases": ["x", "y"]},
        plain | {"id": "b", "state": "starting", "name": "B", "description": "second", "unlisted": True},
    ]
    assert ui == {"activity": {"session_id": ["X-Session-ID", "X-Litellm-Session-Id"]}}
    assert profile == {"active": None}
    assert inflight["operation"] == "snapshot"
    assert [(entry["id"], entry["model"]) for entry in inflight["requests"]] == [("1", "a")]


async def test_the_bytes_of_an_event_are_exactly_as_tools_split_them() -> None:
    async with house(Engine()) as it:
        reader = Reader(await it.stream("/api/events"))
        frames = [await reader.frame() for _ in range(6)]
    assert frames[2] == b'event:message\ndata:{"type":"modelStatus","data":"[]"}'
    assert frames[5] == b'event:message\ndata:{"type":"inflight","data":"{\\"operation\\":\\"snapshot\\"}"}'


async def test_every_change_of_a_state_is_told() -> None:
    engine = Engine(model("m"))
    async with house(engine) as it:
        reader = await watch(it)
        for state in (State.STARTING, State.READY, State.STOPPING, State.STOPPED):
            engine.become("m", state)
        told = [await reader.event() for _ in range(4)]
    assert [kind for kind, _ in told] == ["modelStatus"] * 4
    assert [data[0]["state"] for _, data in told] == ["starting", "ready", "stopping", "stopped"]


async def test_log_lines_are_told_as_they_come() -> None:
    async with house(Engine(model("m"))) as it:
        reader = await watch(it)
        it.write_own_line("own")
        assert await reader.event() == ("logData", {"source": "proxy", "data": "[INFO] own\n"})
        it.engine.live.put_nowait(("m", "line é"))
        assert await reader.event() == ("logData", {"source": "upstream", "data": "line é\n"})


async def test_a_request_in_flight_is_told_from_begin_to_end() -> None:
    async with house(Engine(model("m"))) as it:
        reader = await watch(it)
        headers = CIMultiDict({"x-session-id": "s", "authorization": "Bearer secret"})
        entry = InflightEntry("m", "POST", "/v1/embeddings", headers, "10.0.0.1")
        it.observer.inflight.add(entry)
        began = await reader.next_of("inflight")
        entry.size = 5
        it.observer.inflight.tell(entry)
        answered = await reader.next_of("inflight")
        it.observer.inflight.remove(entry)
        ended = await reader.next_of("inflight")
    assert began["operation"] == answered["operation"] == "upsert"
    assert began["request"]["req_headers"] == {"X-Session-Id": "s", "Authorization": "[REDACTED]"}
    assert (began["request"]["req_path"], began["request"]["resp_headers"]) == ("/v1/embeddings", {})
    assert answered["request"]["resp_bytes"] == 5
    assert ended == {"operation": "remove", "id": began["request"]["id"]}


async def test_without_the_models_logs_the_other_events_still_come() -> None:
    engine = Engine(model("m"))
    async with house(engine) as it:
        reader = await watch(it)
        engine.live.put_nowait(UnitError("the journal is gone"))
        await it.until(lambda: engine.followers == 0)
        engine.become("m", State.READY)
        assert (await reader.event())[0] == "modelStatus"


async def test_a_quiet_stream_is_kept_alive_by_comments() -> None:
    async with house(Engine(), keep_alive_s=0.01) as it:
        reader = await watch(it)
        assert await reader.frame() == b":"


async def test_the_stream_ends_at_shutdown_and_says_why() -> None:
    async with house(Engine()) as it:
        client, late = await it.stream("/api/events"), await it.connect()
        await Reader(client).events(6)
        it.front.drain("llamaswapd is being restarted")
        data = rb'data:{"type":"shutdown","data":"{\"reason\":\"llamaswapd is being restarted\"}"}'
        assert await client.chunk() == b"event:message\n" + data + b"\n\n"
        assert await client.chunk() == b""
        await late.send("/api/events")
        assert (await late.head()).headers["connection"] == "close"
        assert '"shutdown"' in await late.text_until("restarted")
        assert await late.reader.read() == b"0\r\n\r\n"
        await it.front.drained()


async def test_a_reader_that_leaves_leaves_nothing_behind() -> None:
    async with house(Engine()) as it:
        clients = [await it.stream("/api/events") for _ in range(5)]
        for client in clients:
            await Reader(client).events(6)
        assert (it.engine.followers, bool(it.observer.events.members)) == (5, True)
        clients[0].writer.transport.abort()
        for client in clients[1:]:
            client.close()
        await it.front.drained()
        assert it.engine.followers == 0
        assert not it.observer.events.members
        assert not it.observer.log.lines.members


async def test_a_slow_reader_holds_up_nobody_and_learns_the_present_state_in_the_end() -> None:
    engine = Engine(*(model(f"m{number}", description="d" * 1000) for number in range(10)))
    async with house(engine) as it:
        slow_client = Client(*await asyncio.open_connection(sock=narrow_connection(it.port)))
        await slow_client.send("/api/events")
        await slow_client.head()
        slow, quick = Reader(slow_client), await watch(it)
        await slow.events(6)
        for _ in range(30):
            for number in range(100):
                engine.become("m0", State.STARTING if number % 2 else State.STOPPED)
            for _ in range(100):
                await quick.event()  # 30 MB in all: far more than all buffers on the slow one's way can hold
        engine.become("m0", State.READY)
        assert (await quick.event())[1][0]["state"] == "ready"

        count = 0
        while (event := await slow.event())[0] != "modelStatus" or event[1][0]["state"] != "ready":
            count += 1
        assert count < 2500
        assert await slow.event() == ("profileChanged", {"active": None})
        assert await slow.event() == ("inflight", {"operation": "snapshot"})
        engine.become("m0", State.STOPPED)
        engine.become("m0", State.STARTING)
        assert [(await slow.event())[1][0]["state"] for _ in range(2)] == ["stopped", "starting"]
        slow_client.close()


async def test_a_reader_that_reads_nothing_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LAST_WORD_S", 0.01)
    monkeypatch.setattr(server, "LOOK_EVERY_S", 0.01)
    engine = Engine(model("m", description="d" * 1_000_000))
    async with house(engine) as it:
        stalled = Client(*await asyncio.open_connection(sock=narrow_connection(it.port), limit=1))
        await stalled.send("/api/events")
        await it.until(lambda: it.observer.events.members)
        for _ in range(20):
            engine.become("m", State.READY)
        it.front.drain()
        await it.front.drained()
        stalled.writer.transport.abort()


def narrow_connection(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    return connection
