"""Requests that nobody would send on purpose: each ends, none is an accident, and nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress

import pytest
from daemon_support import Daemon, command
from live import Live, mirror, told
from random_requests import Request, random_request

pytestmark = pytest.mark.private

COUNT = int(os.environ.get("LLAMASWAPD_TEST_FUZZ", "300"))  # 10000 before a release
SEED = int(os.environ.get("LLAMASWAPD_TEST_SEED", "0")) or random.randrange(2**32)
CLIENTS = 8
ANSWERED_WITHIN_S = 30.0

CONFIG = {
    "models": {
        "a": mirror(
            aliases=["alias"],
            concurrencyLimit=50,
            filters={"stripParams": "strip, x.y", "setParams": {"n.m": 1}},
        ),
        "b": mirror(
            useModelName="real",
            filters={"setParamsByID": {"by/id": {"x": [1]}}},
            compat={"ignoreWebsockets": True},
        ),
        "c": mirror(sendLoadingState=True),
        "broken": command("sh -c 'exit 3'"),
    },
    "groups": {"g": {"swap": False, "persistent": True, "members": ["a", "b"]}},
    "selectors": {
        "any": {"strategy": "warm", "targets": ["c", "a"]},
        "spill": {"strategy": "spillover", "targets": ["a", "b"]},
    },
    "profiles": {"p": {"pins": {"pinned": "any", "nobody": None}}},
    "peers": {"peer": {"proxy": "http://127.0.0.1:9", "models": ["far"]}},
}

# What a client may be told. Of the 500s only those of a model that cannot be started.
STATUSES = {
    b"100", b"101", b"200", b"204", b"301", b"302", b"307", b"308", b"400", b"401", b"404", b"405", b"406", b"408",
    b"409", b"411", b"413", b"414", b"415", b"417", b"426", b"429", b"431", b"500", b"501", b"502", b"503", b"505",
}  # fmt: skip


async def test_an_expectation_that_is_no_text_is_refused(live: Live) -> None:
    it = await live.configure({})
    head = await first_answer(it, Request(b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: \x82\r\n\r\n", complete=True))
    assert head.startswith((b"HTTP/1.1 417 ", b"HTTP/1.1 400 "))


@pytest.mark.ours("its log is text, whatever was in a path")
@pytest.mark.timeout(60 + COUNT / 10)
async def test_any_request_ends_in_an_answer_of_the_contract_and_leaves_nothing_behind(live: Live) -> None:
    print(f"LLAMASWAPD_TEST_SEED={SEED} LLAMASWAPD_TEST_FUZZ={COUNT}")
    it = await live.configure(CONFIG)
    before = it.open_files()
    dice = random.Random(SEED)
    requests = (random_request(dice) for _ in range(COUNT))
    seen: Counter[str] = Counter()

    async def client() -> None:
        for request in requests:
            head = await first_answer(it, request)
            seen[check(request, head)] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    print(COUNT, "requests:", dict(sorted(seen.items())))

    assert (await it.ask("/health")).body == b"OK"
    async with it.events() as events:
        await events.until(lambda: bool(events.states))
        await events.until_in_flight(0)
    await it.ask("/api/profiles/active", {"name": None}, method="PUT")
    assert (await told(it, "b"))["served"] > 0
    await it.ask("/unload")
    if COUNT >= 1000:  # a connection whose client owes the rest of a request lingers for ten seconds
        async with asyncio.timeout(20):
            while it.open_files() > before + 2:  # noqa: ASYNC110, nothing tells of a closed file
                await asyncio.sleep(0.05)


async def first_answer(it: Daemon, request: Request) -> bytes:
    """Send a request; return the first of what comes back, which must come, or the end, and leave."""
    reader, writer = await it.connect()
    try:
        with suppress(OSError):  # the answer may come, and the connection end, before all is sent
            writer.write(request.data)
            if request.is_left:
                await writer.drain()
                return b""
            if not request.complete:
                writer.write_eof()
        with suppress(ConnectionError):
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                head = await reader.read(65536)
                if head.startswith(b"HTTP/1.1 500") and head.endswith(b"\r\n\r\n") and not is_head(request):
                    head += await reader.read(65536)
                return head
        return b""
    except TimeoutError:
        raise AssertionError(f"no answer within {ANSWERED_WITHIN_S:g} s: {request}") from None
    finally:
        writer.transport.abort()


def check(request: Request, head: bytes) -> str:
    """Return the status of an answer, "-" for none, which must be what may be expected."""
    if not head:
        assert request.is_left or not request.complete, f"no answer to {request}"
        return "left" if request.is_left else "-"
    line = head.split(b"\r\n", 1)[0]
    assert line.startswith(b"HTTP/"), (head[:300], request)
    status = line[9:12]
    assert status in STATUSES, (head[:300], request)
    if status == b"500":
        assert b"unspecific error: " in head or is_head(request), (head[:600], request)
    return status.decode()


def is_head(request: Request) -> bool:
    return request.data.startswith(b"HEAD")
