"""The event stream, `/api/events`: what the models, the requests and the logs are doing, as server-sent events.

A reader is first told how things are, then what changes. One that reads too slowly is told again how things are.
"""

from __future__ import annotations

import asyncio
import json
import logging

from aiohttp import web

from llamaswapd.engine import Engine
from llamaswapd.errors import Error
from llamaswapd.http.listing import status_records
from llamaswapd.http.logs import LogLines, following, history
from llamaswapd.http.streams import Streams, stream_response
from llamaswapd.observe import Observer
from llamaswapd.observe.feed import Event, Subscription
from llamaswapd.observe.log import HISTORY_BYTES

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0  # proxies and clients give up connections on which nothing moves


class Events:
    """Handler of `/api/events`; turns the engine's changes into events."""

    def __init__(
        self, engine: Engine, observer: Observer, streams: Streams, keep_alive_s: float = KEEP_ALIVE_S
    ) -> None:
        self._engine = engine
        self._observer = observer
        self._streams = streams
        self._keep_alive_s = keep_alive_s
        engine.on_change(self._publish_status)
        engine.on_profile(self._publish_profile)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = stream_response("text/event-stream", {"Cache-Control": "no-cache", "Connection": "keep-alive"})
        return await self._streams.run(request, response, self._write, last_word=goodbye)

    async def _write(self, response: web.StreamResponse) -> None:
        own_history, own_lines = self._observer.log.follow()
        with own_lines, self._observer.events.subscribe() as events:
            async with following(self._engine, None, HISTORY_BYTES) as lines:
                await send(
                    response,
                    log_data("proxy", own_history),
                    log_data("upstream", await self._upstream_history(lines)),
                    self._status(),
                    Event("uiConfig", {"activity": {"session_id": self._engine.config.ui.activity.session_id}}),
                    self._profile(),
                    self._observer.inflight.snapshot(),
                )
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._write_events(response, events))
                    group.create_task(write_own_log(response, own_lines))
                    group.create_task(self._write_upstream_log(response, lines))
                    group.create_task(self._keep_alive(response))

    async def _write_events(self, response: web.StreamResponse, events: Subscription[Event]) -> None:
        while True:
            items = await events.items()
            if events.has_lost:
                events.has_lost = False
                items = [self._status(), self._profile(), self._observer.inflight.snapshot()]
            await send(response, *items)

    async def _upstream_history(self, lines: LogLines) -> str:
        try:
            return await history(lines)
        except Error as error:  # the other events are worth having without it
            log.warning("the models' logs cannot be read: %s", error)
            return ""

    async def _write_upstream_log(self, response: web.StreamResponse, lines: LogLines) -> None:
        try:
            async for _, line in lines:
                await send(response, log_data("upstream", f"{line}\n"))
        except Error as error:
            log.warning("the models' logs can no longer be read: %s", error)

    async def _keep_alive(self, response: web.StreamResponse) -> None:
        while True:
            await asyncio.sleep(self._keep_alive_s)
            await response.write(b":\n\n")

    def _publish_status(self) -> None:
        if self._observer.events.members:
            self._observer.events.publish(self._status())

    def _publish_profile(self, active: str | None) -> None:
        self._observer.events.publish(Event("profileChanged", {"active": active}))

    def _profile(self) -> Event:
        return Event("profileChanged", {"active": self._engine.naming.active})

    def _status(self) -> Event:
        return Event("modelStatus", status_records(self._engine.config, self._engine.statuses()))


async def write_own_log(response: web.StreamResponse, lines: Subscription[str]) -> None:
    while True:
        await send(response, log_data("proxy", "".join(await lines.items())))


def log_data(source: str, text: str) -> Event:
    return Event("logData", {"source": source, "data": text})


def goodbye(why: str) -> bytes:
    """Return the last event of a stream that the daemon ends."""
    return frame(Event("shutdown", {"reason": why}))


async def send(response: web.StreamResponse, *events: Event) -> None:
    """Write events as llama-swap frames them. There are clients that split on the exact bytes."""
    await response.write(b"".join(frame(event) for event in events))


def frame(event: Event) -> bytes:
    data = json.dumps(event.data, separators=(",", ":"))
    return f"event:message\ndata:{json.dumps({'type': event.type, 'data': data}, separators=(',', ':'))}\n\n".encode()
