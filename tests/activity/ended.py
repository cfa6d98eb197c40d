"""Requests that have ended, as the relay hands them over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llamaswapd.activity.activity import Activity
from llamaswapd.activity.record import NO_METADATA, Record
from llamaswapd.config.schema import Config, Store
from llamaswapd.http.relay import Relay
from llamaswapd.http.wire import Chunked, parse_head
from llamaswapd.observe.feed import Event, Feed

USAGE = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'


class Sent:
    """The header fields of a request."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = tuple(pairs)

    def get(self, name: str, default: str, /) -> str:
        return next((value for each, value in self._pairs if each.lower() == name.lower()), default)

    def items(self) -> Iterable[tuple[str, str]]:
        return self._pairs


def finished(body: bytes = b"{}", **values: Any) -> Record:
    """Return a request that was answered with 200 and this body; `values` are what is different."""
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
    values = defaults | values
    made = Relay("m", "POST", "/v1/chat/completions", Sent(values.pop("request_headers")), "")
    lines = "".join(f"{name}: {value}\r\n" for name, value in values.pop("response_headers"))
    shape, digits = parse_head(f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode())
    shape.content_type, shape.content_encoding = values.pop("content_type"), values.pop("content_encoding")
    made.answer = shape, digits
    made.framing = Chunked() if values.pop("is_chunked") else None
    made._has_own_stream, made._is_http11 = False, True
    for name, value in values.items():
        setattr(made, name, value)
    return made


def plain(body: bytes = b"{}", *, began: float = 100.0, lasted: float = 1.0, **values: Any) -> Record:
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
