"""When may a model be sent requests? Once its health endpoint has answered 200, noticed as soon as possible.

systemd says *running*, the probe says *ready*; neither stands in for the other. A probe is a bare GET on a connection
of its own: one that was accepted before the server was ready may hang, so nothing is reused across probes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import ssl
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from llamaswapd.config.regex import without_start
from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import Error, StartError, UnitResult

log = logging.getLogger(__name__)

# Pause between probes. A refused connection on loopback costs some 0.2 ms of CPU, so 100 a second are affordable while
# most servers come up, and 33 a second for those that load for minutes: never more than 30 ms are lost.
FIRST_PAUSE_S = 0.010
FIRST_PAUSES_FOR_S = 1.0
PAUSE_GROWTH = 1.2
LONGEST_PAUSE_S = 0.030

# How long one probe may take. A server that accepts and never answers must not hold up the load, one that is only slow
# must get a chance: the bound doubles with every probe that runs into it.
FIRST_PROBE_LIMIT_S = 1.0
LONGEST_PROBE_LIMIT_S = 16.0

# How long the addresses of a host are believed. A container has its name once it runs, which may be long after `cmd`
# has begun to fetch the image; until the one before it is gone, the name may be that one's.
ADDRESSES_KEPT_S = 1.0
KEPT_PER_LOOK_UP = 5  # and so many times as long as it took to learn them: nothing is probed meanwhile

# How long the answer to a greeting may take; whatever it does to the server goes on.
GREETING_LIMIT_S = 60.0

LOG_LINES_SHOWN = 10


class Starting(Protocol):
    """What of a started unit matters until it is ready; see `engine.Unit`."""

    @property
    def ended(self) -> asyncio.Future[UnitResult]: ...

    @property
    def notified(self) -> asyncio.Event: ...

    async def stranger(self, port: int) -> str | None: ...

    async def last_lines(self, count: int) -> list[str]: ...

    async def wait_for_line(self, pattern: re.Pattern[str]) -> str: ...


@dataclass(frozen=True)
class Endpoint:
    """Where and what to probe."""

    host: str
    port: int
    tls: bool
    target: str  # request target: path and query

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.target}"

    @property
    def is_local(self) -> bool:
        return self.host in ("localhost", "::1", "::", "0.0.0.0") or self.host.startswith("127.")


def endpoint(model: ModelConfig) -> Endpoint | None:
    """Return what to probe, None for `checkEndpoint: none`.

    The endpoint is joined to the proxy like a request: the proxy's path is a prefix, a query is kept, and of a full URL
    only path and query count (llama-swap).
    """
    if model.check_endpoint.strip().lower() == "none":
        return None
    return _below_proxy(model, model.check_endpoint.strip())


def _below_proxy(model: ModelConfig, target: str) -> Endpoint:
    proxy, check = urlsplit(model.proxy), urlsplit(target)
    path = proxy.path.rstrip("/") + "/" + check.path.lstrip("/")
    return Endpoint(
        proxy.hostname or "localhost",
        proxy.port or (443 if proxy.scheme == "https" else 80),
        proxy.scheme == "https",
        path + (f"?{check.query}" if check.query else ""),
    )


async def wait_until_ready(model: ModelConfig, unit: Starting) -> None:
    """Return once requests may be sent to the model; raise StartError when that will not come to pass.

    Ends at once when the unit ends, after `healthCheckTimeout` in any case. Never returns for a server that is no part
    of the unit, where that can be seen.
    """
    where = endpoint(model)
    host = _Host(model, where) if where is not None else None
    try:
        async with asyncio.timeout(model.health_check_timeout):
            await _unless_ended(unit, _ready(model, unit, host))
    except TimeoutError:
        lines = await unit.last_lines(LOG_LINES_SHOWN)
        reason = f"; {host.failure}" if host is not None and host.failure else ""
        text = f"health check timed out after {go_duration(model.health_check_timeout)}{reason}"
        raise StartError(text, lines) from None


async def greet(model: ModelConfig) -> None:
    """Send a ready model the GET `/` by which llama-swap preloads; some servers load more at their first request.

    Returns once it is answered, however, or not in time.
    """
    where = _below_proxy(model, "/")
    tls = ssl.create_default_context() if where.tls else None
    with contextlib.suppress(TimeoutError, StartError):
        async with asyncio.timeout(GREETING_LIMIT_S):
            await _probe(where, await _Host(model, where).addresses(), tls)


async def _unless_ended(unit: Starting, ready: Awaitable[None]) -> None:
    """Await `ready`, unless the unit ends first."""
    waiting = asyncio.ensure_future(ready)
    ended = asyncio.shield(unit.ended)
    try:
        await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
        if not unit.ended.done():
            return await waiting
        lines = await unit.last_lines(LOG_LINES_SHOWN)
        raise StartError(f"upstream command exited prematurely: {unit.ended.result()}", lines)
    finally:
        await _end(waiting)
        ended.cancel()


async def _ready(model: ModelConfig, unit: Starting, host: _Host | None) -> None:
    hint = asyncio.Event()  # a reason to probe now rather than after the pause
    async with contextlib.AsyncExitStack() as stack:
        line: asyncio.Task[None] | None = None
        if model.ready_log:
            line = asyncio.create_task(_hint_on_line(model, unit, hint), name=f"readyLog {model.id}")
            stack.push_async_callback(_end, line)
        if host is None:
            if line is not None:
                await line
            return
        notified = asyncio.create_task(_hint_on_notify(unit, hint), name=f"notify {model.id}")
        stack.push_async_callback(_end, notified)
        await _probe_until_ok(host, hint, _Owner(model, unit, host.where))
        log.info("<%s> Health check passed on %s", model.id, host.where.url)


async def _hint_on_line(model: ModelConfig, unit: Starting, hint: asyncio.Event) -> None:
    try:
        await unit.wait_for_line(re.compile(without_start(model.ready_log)))
    except Error as error:
        log.warning("<%s> its log cannot be watched for readyLog: %s", model.id, error)
        raise
    hint.set()


async def _hint_on_notify(unit: Starting, hint: asyncio.Event) -> None:
    while True:
        await unit.notified.wait()
        unit.notified.clear()
        hint.set()


class _Host:
    """Where the host of an endpoint is; `localhost` is often two addresses, of which a server listens on one."""

    def __init__(self, model: ModelConfig, where: Endpoint) -> None:
        self._model = model
        self.where = where
        self.failure = ""  # why it has no address
        self._addresses: list[tuple[str, int]] = []
        self._believed_until = 0.0

    async def addresses(self) -> list[tuple[str, int]]:
        """Return its addresses, none as long as nobody knows the name; raise StartError if it can be no name."""
        loop = asyncio.get_running_loop()
        if (began := loop.time()) >= self._believed_until:
            await self._look_up(loop)
            now, kept_s = loop.time(), ADDRESSES_KEPT_S
            if self._addresses:
                kept_s = math.inf if self.where.is_local else max(kept_s, (now - began) * KEPT_PER_LOOK_UP)
            self._believed_until = now + kept_s
        return self._addresses

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        where, failed_before = self.where, self.failure
        try:
            found = await loop.getaddrinfo(where.host, where.port, type=1)
        except OSError as error:
            self._addresses = []
            self.failure = self._failed(error)
            if not failed_before:
                log.warning("<%s> %s, unless its container is yet to start", self._model.id, self.failure)
        except UnicodeError as error:  # no name for the DNS, such as `a..b`
            raise StartError(self._failed(error)) from error
        else:
            self._addresses = [(str(entry[4][0]), where.port) for entry in found]
            self.failure = ""

    def _failed(self, error: Exception) -> str:
        return f"cannot resolve the host of {self.where.url}: {error}; correct the model's proxy"


class _Owner:
    """Sees to it, once, that whoever answers on the model's port belongs to the model."""

    def __init__(self, model: ModelConfig, unit: Starting, where: Endpoint) -> None:
        self._model, self._unit, self._where = model, unit, where
        self._is_checked = not (where.is_local and model.names_port(where.port))

    async def check(self) -> None:
        """Raise StartError if it is a stranger, as far as that can be seen."""
        if self._is_checked:
            return
        self._is_checked = True
        if stranger := await self._unit.stranger(self._where.port):
            raise StartError(
                f"port {self._where.port} of proxy {self._model.proxy} answers, but it belongs to {stranger}; "
                "stop that program or give this model another port",
                await self._unit.last_lines(LOG_LINES_SHOWN),
            )


async def _probe_until_ok(host: _Host, hint: asyncio.Event, owner: _Owner) -> None:
    """Probe until the answer is 200. A hint ends a pause, and a probe that hangs."""
    now = asyncio.get_running_loop().time
    where = host.where
    tls = ssl.create_default_context() if where.tls else None
    started, pause, limit = now(), FIRST_PAUSE_S, FIRST_PROBE_LIMIT_S
    while True:
        hint.clear()
        addresses = await host.addresses()
        try:
            async with asyncio.timeout(limit):
                status = await _first_of(_probe(where, addresses, tls), hint)
        except TimeoutError:
            limit = min(limit * 2, LONGEST_PROBE_LIMIT_S)
            continue
        if status:  # already at the 503 of a server that loads: nothing is left to do when the 200 comes
            await owner.check()
        if status == 200:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await hint.wait()
        if now() - started > FIRST_PAUSES_FOR_S:
            pause = min(pause * PAUSE_GROWTH, LONGEST_PAUSE_S)


async def _first_of(probe: Awaitable[int], hint: asyncio.Event) -> int:
    """Return the probe's status, or 0 as soon as there is a hint that a new probe is worth more."""
    probing = asyncio.ensure_future(probe)
    hinted = asyncio.ensure_future(hint.wait())
    try:
        await asyncio.wait((probing, hinted), return_when=asyncio.FIRST_COMPLETED)
        return probing.result() if probing.done() else 0
    finally:
        await _end(probing, hinted)


async def _probe(where: Endpoint, addresses: Iterable[tuple[str, int]], tls: ssl.SSLContext | None) -> int:
    """Return the status of the first address that answers, 0 if none does."""
    for host, port in addresses:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a status line longer than the stream's limit
            if status := await _status(where, host, port, tls):
                return status
    return 0


async def _status(where: Endpoint, host: str, port: int, tls: ssl.SSLContext | None) -> int:
    """Return the status of one GET. Redirects are not followed; only 200 will count."""
    reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=where.host if tls else None)
    try:
        name = f"[{where.host}]" if ":" in where.host else where.host
        writer.write(
            f"GET {where.target} HTTP/1.1\r\nHost: {name}:{where.port}\r\nUser-Agent: llamaswapd\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n".encode()
        )
        version, _, rest = (await reader.readline()).partition(b" ")
        return int(rest[:3]) if version.startswith(b"HTTP/1.") and rest[:3].isdigit() else 0
    finally:
        writer.transport.abort()


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel helper tasks, all of them before a second time limit may cut this short, and see them end."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved: the caller has raised, or will raise, what matters


def go_duration(seconds: float) -> str:
    """Return whole seconds as Go prints a duration: `15s`, `2m0s`, `1h0m0s`."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minute}m{second}s"
    return f"{minute}m{second}s" if minute else f"{second}s"
