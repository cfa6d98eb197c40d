"""The known ways to hide a request inside another, with the servers behind us that people really use.

A recording server (`test_smuggling`) shows what is sent; a real one shows what is made of it: whether any of them
reads two requests where we have sent one, or the other way round. What is compared is what we have sent, what the
server has seen, and whose answer whoever comes next is given.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_model import LeasingEngine, until
from real_upstreams import RealUpstream, llama_cpp, nginx, node, uvicorn
from standins import House, house, model
from test_smuggling import ATTACKS, BODY, HIDDEN, START, UPSTREAM

from llamaswapd.http.relay import Relay
from llamaswapd.http.upstream import Upstream

SERVERS: dict[str, Callable[[Path], AbstractAsyncContextManager[RealUpstream]]] = {
    "llama.cpp": llama_cpp,
    "uvicorn with h11": partial(uvicorn, parser="h11"),
    "uvicorn with httptools": partial(uvicorn, parser="httptools"),
    "node": partial(node, parser="strict"),
    "node, lenient": partial(node, parser="lenient"),
    "nginx": nginx,
}

# Of these comes only what is here; then the client leaves.
BROKEN_OFF = {
    "a body that ends early": START + b"Content-Length: 500\r\n\r\n" + BODY[:-1] + b",\r\n" + HIDDEN,
    "an upstream body that ends early": UPSTREAM + b"Content-Length: 500\r\n\r\n" + HIDDEN,
    "chunks that end early": UPSTREAM + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN),
    "a chunk that ends early": UPSTREAM + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n" + HIDDEN,
}

QUIET_S = 0.25  # an attack whose end never comes is given up after so long a silence
QUIET_AT_WORK_S = 2.0  # the same, when a model's server has the request


@dataclass
class Sent:
    """A request that the front end has sent on."""

    what: str  # METHOD TARGET
    is_answered: bool = False


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Sent]:
    """What the front end takes itself to have sent, in order."""
    requests: list[Sent] = []
    at_work: dict[Any, Sent] = {}  # by whoever gets the answer
    send, end, whole = Upstream.send_whole, Upstream._end, Relay.on_whole

    def note_sent(upstream: Upstream, sink: Any, data: bytes, now: float) -> None:
        line = data.partition(b"\r\n")[0].decode("latin-1")
        at_work[sink] = Sent(line.removesuffix(" HTTP/1.1"))
        requests.append(at_work[sink])
        send(upstream, sink, data, now)

    def note_answered(upstream: Upstream) -> None:
        if upstream._sink is not None:
            at_work[upstream._sink].is_answered = True
        end(upstream)

    def note_whole(relay: Relay, *arguments: Any) -> None:
        at_work[relay].is_answered = True
        whole(relay, *arguments)

    monkeypatch.setattr(Upstream, "send_whole", note_sent)
    monkeypatch.setattr(Upstream, "_end", note_answered)
    monkeypatch.setattr(Relay, "on_whole", note_whole)
    return requests


def innocent(path: str, mark: str) -> bytes:
    body = b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % mark.encode()
    head = (f"POST {path}?{mark} HTTP/1.1", "Host: models", "Content-Type: application/json", "Connection: close")
    return "\r\n".join((*head, f"Content-Length: {len(body)}", "", "")).encode() + body


async def talk(it: House, data: bytes) -> bytes:
    """Send all of this at once; return what is answered, up to the end of the connection or a long silence."""
    client = await it.connect()
    client.writer.write(data)
    answers, silence_s = b"", 0.0
    while silence_s < (QUIET_AT_WORK_S if it.engine.leases else QUIET_S):
        try:
            async with asyncio.timeout(QUIET_S):
                piece = await client.reader.read(65536)
        except TimeoutError:
            silence_s += QUIET_S
            continue
        except ConnectionError:
            break
        if not piece:
            break
        answers += piece
        silence_s = 0
    client.writer.transport.abort()
    return answers


def check(name: str, server: RealUpstream, sent: list[Sent], seen: list[str]) -> None:
    """Hold what a server has seen against what it was sent: all that it has answered, and nothing else.

    What was given up before it was answered may have been seen, or refused, or neither.
    """
    what = (name, sent, seen)
    all_sent = Counter(request.what for request in sent)
    answered = Counter(request.what for request in sent if request.is_answered)
    assert answered.total() <= len(seen) <= len(sent), what
    requests = Counter(seen)
    assert requests.pop("refused", 0) <= len(sent) - answered.total(), what
    if server.tells_lines:
        assert answered <= requests <= all_sent, what


async def attack_on_one_connection(it: House, server: RealUpstream, attack: bytes, mark: str, sent: list[Sent]) -> bool:
    """Send an attack and an innocent request behind it; return whether that was answered or the connection ended."""
    before = len(sent)
    answers = await talk(it, attack + innocent(server.path, mark))
    of_others = answers.replace(mark.encode(), b"")
    assert b"innocent-" not in of_others, answers
    echoes = server.echoes(answers)
    assert echoes == [request.what for request in sent[before:]][: len(echoes)], answers
    return of_others != answers


async def leave_in_the_middle(it: House, attack: bytes, sent: list[Sent]) -> None:
    """Send an attack whose end does not come, and be gone as soon as its beginning has been sent on.

    A body that is to be changed is not sent on without its end.
    """
    before = len(sent)
    client = await it.connect()
    client.writer.write(attack)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(QUIET_S):
            await until(lambda: len(sent) > before)
    client.writer.transport.abort()
    await until(lambda: not it.engine.leases)


@pytest.mark.sources
@pytest.mark.timeout(120)
@pytest.mark.parametrize("run", [pytest.param(run, id=name) for name, run in SERVERS.items()])
async def test_a_real_server_sees_what_was_sent_and_nobody_gets_the_answer_of_another(
    run: Callable[[Path], AbstractAsyncContextManager[RealUpstream]], sent: list[Sent], tmp_path: Path
) -> None:
    own_answers = 0
    async with run(tmp_path) as server:
        await server.latest()
        engine = LeasingEngine(model("m", proxy=f"http://127.0.0.1:{server.port}", **server.settings))
        async with house(engine, 110) as it:
            for number, (name, attack) in enumerate((ATTACKS | BROKEN_OFF).items()):
                before = len(sent)
                mark = f"innocent-{number}-"
                if name in BROKEN_OFF:
                    await leave_in_the_middle(it, attack, sent)
                else:
                    own_answers += await attack_on_one_connection(it, server, attack, mark, sent)
                answer = await talk(it, innocent(server.path, mark))
                assert answer.startswith(b"HTTP/1.1 200 "), (name, answer)
                assert mark.encode() in answer, (name, answer)
                assert answer.count(b"HTTP/1.1 ") == 1, (name, answer)
                check(name, server, sent[before:], await server.latest())
        check("what came late", server, [], await server.latest())
    assert len(ATTACKS) > own_answers > 10
    assert sum(request.is_answered for request in sent) > len(ATTACKS) + 20
