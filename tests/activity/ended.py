"""Requests that have ended, as the relay hands them over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llamaswapd.activity.activity import Activity
from llamaswapd.activity.record import NO_METADATA, Finished
from llamaswapd.config.schema import Config, Store
from llamaswapd.observe import Event, Feed

USAGE = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'


def finished(body: bytes = b"{}", **values: Any) -> Finished:
    """Return a request that was answered with 200 and this body; `values` are what is different."""
    made = Finished()
    defaults = {
        "model_id": "m",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "ended_ns": 1_700_000_000_123_456_789,
        "began": 100.0,
        "load_began": 0.0,
        "granted": 100.0,
        "first_byte": 100.5,
        "ended": 101.0,
        "metadata": NO_METADATA,
        "error": "",
        "content_type": "application/json",
        "content_encoding": "",
        "heads_bytes": 0,
        "request_headers": lambda: (),
        "response_headers": lambda: (),
        "request": b'{"model":"m"}',
        "response": [body],
        "is_chunked": False,
        "is_cut": False,
        "answer_bytes": len(body),
    }
    assert values.keys() <= defaults.keys()
    for name, value in (defaults | values).items():
        setattr(made, name, value)
    return made


def chunked(*pieces: bytes) -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@asynccontextmanager
async def activity(
    path: Path | None = None, events: Feed[Event] | None = None, **config: Any
) -> AsyncIterator[Activity]:
    """An activity that is open."""
    if path is not None:
        config["store"] = Store(path=str(path))
    made = Activity(Config(**config), events or Feed())
    await made.open()
    try:
        yield made
    finally:
        await made.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Let others work until something has become true; the test's time limit is the only one."""
    while not is_so():  # noqa: ASYNC110, what is waited for has no event
        await asyncio.sleep(0.001)
