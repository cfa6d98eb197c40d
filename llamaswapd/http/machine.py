"""What is told of the machine: its hardware, and how busy it has been."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from aiohttp import web

from llamaswapd.errors import RequestError
from llamaswapd.http.answers import json_answer
from llamaswapd.machine.hardware import Hardware
from llamaswapd.machine.performance import GpuSample, Performance, Record, Sample, records

# time.RFC3339 of Go's library, in which llama-swap reads it: capital letters, any number of decimals.
RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2}T(?:[01]\d|2[0-3]):\d{2}:\d{2})(?:[.,](\d+))?(?:Z|([+-](?:[01]\d|2[0-3]):[0-5]\d))", re.ASCII
)


class Machine:
    """Handlers for `/api/hardware` and `/api/performance`."""

    def __init__(self, hardware: Hardware, performance: Performance) -> None:
        self._hardware = hardware
        self._performance = performance

    async def hardware(self, request: web.Request) -> web.Response:
        """Answer with the snapshot; wait for it if it is being taken."""
        return json_answer(await self._hardware.snapshot())

    async def performance(self, request: web.Request) -> web.Response:
        """Answer with an hour of samples, or those after a moment."""
        if not self._performance.is_enabled:
            answer = json_answer({"enabled": False})
            answer.set_status(503)
            return answer
        after = request.query.get("after", "")
        moment = parse_rfc3339(after) if after else None
        if after and moment is None:
            raise RequestError("invalid 'after' timestamp, use RFC3339 format")
        # An hour of a machine with a hundred cores takes a while to be written.
        body = await asyncio.to_thread(_written, *self._performance.after(moment), b"null" if moment is None else b"[]")
        return web.Response(body=body, headers={"Content-Type": "application/json"})


def parse_rfc3339(text: str) -> datetime | None:
    """Read a timestamp, to the microsecond below it; None if it is none."""
    found = RFC3339.fullmatch(text)
    if found is None:
        return None
    moment, decimals, offset = found.groups()
    try:
        return datetime.fromisoformat(f"{moment}.{(decimals or '')[:6]:0<6}{offset or '+00:00'}")
    except ValueError:  # the 30th of February
        return None


def _written(samples: Sequence[Sample], gpu_samples: Sequence[GpuSample], none: bytes) -> bytes:
    """Return the answer. `none` stands for no rows: llama-swap says null where none were taken, [] where none fit."""
    arrays = (_array(rows) or none for rows in records(samples, gpu_samples))
    return b'{"enabled":true,"sys_stats":%b,"gpu_stats":%b}\n' % (*arrays,)


def _array(rows: Sequence[Record]) -> bytes:
    """Write rows one by one, so that other threads have their turn in between; none are nothing."""
    return b"[" + b",".join(_lines(rows)) + b"]" if rows else b""


def _lines(rows: Sequence[Record]) -> Iterator[bytes]:
    for row in rows:
        yield json.dumps(row, separators=(",", ":")).encode()
