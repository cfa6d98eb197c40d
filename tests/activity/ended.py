"""Requests that have ended, as the relay hands them over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llamaswapd.activity.activity import Activity
from llamaswapd.activity.record import NO_METADATA, Pairs, Record
from llamaswapd.config.schema import Config, Store
from llamaswapd.observe import Event, Feed

USAGE = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'


class Ended(Record):
    """A record that holds what others work out."""

    __slots__ = ("content_encoding", "content_type", "is_chunked", "request_headers", "response_headers")

    request_headers: Pairs
    response_headers: Pairs

    def __init__(self) -> None:
        super().__init__("m", "POST", "/v1/chat/completions", {}, "")

    def request_pairs(self) -> Callable[[], Pairs]:
        return lambda: self.request_headers

    def response_pairs(self) -> Callable[[], Pairs]:
        return lambda: self.response_headers


def finished(body: bytes = b"{}", **values: Any) -> Ended:
    """Return a request that was answered with 200 and this body; `values` are what is different."""
    made = Ended()
    defaults = {
        "model_id": "m",
        "method": "POST",
        "sent_path": "/v1/chat/completions",
        "outcome": 200,
        "began": 100.0,
        "load_began": 0.0,
        "granted": 100.0,
        "first_byte": 100.5,
        "ended": 101.0,
        "about": NO_METADATA,
        "error": "",
        "content_type": "application/json",
        "content_encoding": "",
        "heads_bytes": 0,
        "request_headers": (),
        "response_headers": (),
        "request": b'{"model":"m"}',
        "response": body,
        "is_chunked": False,
        "is_cut": False,
        "is_plain": False,
    }
    assert values.keys() <= defaults.keys()
    for name, value in (defaults | values).items():
        setattr(made, name, value)
    return made


def plain(body: bytes = b"{}", *, began: float = 100.0, lasted: float = 1.0, **values: Any) -> Ended:
    """Return a plain one that lasted so many seconds."""
    return finished(
        body, is_plain=True, began=began, granted=began, first_byte=began + lasted, ended=began + lasted, **values
    )


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
