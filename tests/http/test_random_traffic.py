"""Random requests, answered at random, arrive byte for byte: both ways, all framings, cut and piled up at random."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random

import pytest
from fake_model import Call, house_of
from standins import Client, House

REQUESTS = int(os.environ.get("LLAMASWAPD_TEST_TRAFFIC", "600"))
CLIENTS = 6


def answer_for(chance: random.Random) -> tuple[bytes, str]:
    return chance.randbytes(chance.choice((0, 1, 100, 5_000, 300_000))), chance.choice(("length", "chunks", "close"))


async def model(call: Call) -> None:
    """Answer as the request's seed says, in its framing and pieces, and with what came."""
    body = await call.read_body()
    call.body = b""  # calls are kept
    chance = random.Random(call.headers["x-seed"])
    content, framing = answer_for(chance)
    head = f"HTTP/1.1 200 OK\r\nX-Line: {call.request_line}\r\nX-Digest: {hashlib.sha256(body).hexdigest()}\r\n"
    pieces = [content[at : at + 70_000] for at in range(0, len(content), 70_000)]
    if framing == "length":
        await call.send(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + b"".join(pieces[:1]))
        for piece in pieces[1:]:
            await call.send(piece)
    elif framing == "chunks":
        await call.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for piece in pieces:
            await call.send(b"%x;x=y\r\n%b\r\n" % (len(piece), piece))
        await call.send(b"0\r\nX-Trailer: x\r\n\r\n")
    else:
        await call.send(f"{head}\r\n".encode() + content)
        call.close()


def body_for(chance: random.Random) -> tuple[bytes, str]:
    pad = chance.choice((0, 10, 3_000, 80_000, 1_500_000))
    text = "".join(chance.choices('abc ]},"\\é\n', k=min(pad, 500))) * max(1, pad // 500)
    members = [
        ("model", "m"),
        ("messages", [{"role": "user", "content": text}] * chance.choice((1, 3))),
        ("x", [1, {"y": 2}]),
    ]
    chance.shuffle(members)
    if chance.random() < 0.8:
        return json.dumps(dict(members), ensure_ascii=chance.random() < 0.5).encode(), "application/json"
    parts = [b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n']
    parts.append(b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + text.encode() + b"\r\n")
    chance.shuffle(parts)
    return b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"


class Exchange:
    """A random request, and what has to come back."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.body, kind = body_for(chance)
        path = chance.choice(("/v1/chat/completions", "/v1/embeddings?a=%20", "/upstream/m/v1/any"))
        self.line = f"POST {path.removeprefix('/upstream/m')} HTTP/1.1"
        is_chunked = chance.random() < 0.15
        lines = [f"POST {path} HTTP/1.1", "Host: m", f"Content-Type: {kind}", f"X-Seed: {seed}"]
        if chance.random() < 0.2:
            lines.append("X-Odd: \xe4")  # not for the express way
        lines.append("Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {len(self.body)}")
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.body), self.body) if is_chunked else self.body
        self.data = "\r\n".join((*lines, "", "")).encode("latin-1") + framed
        self.content, framing = answer_for(random.Random(str(seed)))
        self.is_last = is_chunked or framing == "close"

    async def check(self, client: Client) -> None:
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        assert f"X-Line: {self.line}\r\n" in head
        assert hashlib.sha256(self.body).hexdigest() in head
        if "Content-Length" in head:
            content = await client.reader.readexactly(len(self.content))
        elif "chunked" in head:
            content = b""
            while size := int((await client.reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                content += (await client.reader.readexactly(size + 2))[:-2]
            assert await client.reader.readuntil(b"\r\n\r\n") == b"X-Trailer: x\r\n\r\n"
        else:
            content = await client.reader.read(-1)
        assert content == self.content


async def talk(it: House, seeds: range) -> None:
    chance = random.Random(seeds.start)
    todo = list(seeds)  # what they mean is megabytes each, and made when its turn comes
    while todo:
        client = await it.connect()
        batch = []
        while todo and not (batch and batch[-1].is_last) and len(batch) < 4:
            batch.append(Exchange(todo.pop()))
        data = b"".join(exchange.data for exchange in batch)
        sending = asyncio.create_task(send(client, data, chance))
        for exchange in batch:
            await exchange.check(client)
        await sending
        client.close()
        it.activity.ended.clear()  # records have bodies


async def send(client: Client, data: bytes, chance: random.Random) -> None:
    at = 0
    while at < len(data):
        step = chance.choice((1, 50, 1000, 100_000, 10_000_000))
        client.writer.write(data[at : at + step])
        at += step
        await client.writer.drain()
        await asyncio.sleep(0)


@pytest.mark.timeout(3600)
async def test_random_traffic_arrives_byte_for_byte() -> None:
    async with house_of(model, limit_s=3600, concurrency_limit=1000) as (it, _):
        each = REQUESTS // CLIENTS
        await asyncio.gather(*(talk(it, range(n * each, (n + 1) * each)) for n in range(CLIENTS)))
