"""What every request passes before its handler, and what becomes of its errors.

In this order: OPTIONS, which no handler sees; paths that are not clean; routes that do not exist; the key. Around all
of it, the one place where exceptions become answers, and the access log.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from llamaswapd.engine import Engine
from llamaswapd.errors import Error, RequestError
from llamaswapd.http.answers import error_answer, redirect, text_answer
from llamaswapd.http.auth import authorize
from llamaswapd.http.connection import Connection
from llamaswapd.http.ordinary import Relayed
from llamaswapd.http.server import Handler, connection_of
from llamaswapd.http.traffic import CLIENT_LEFT, UNLOGGED_PATHS, Traffic, printable
from llamaswapd.observe.access import Access
from llamaswapd.observe.inflight import TOKEN, remote_ip

log = logging.getLogger(__name__)

Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Answered without a key: nothing behind them tells or does anything.
OPEN_PATHS = frozenset(("/", "/health", "/wol-health", "/upstream", "/ui", "/favicon.ico"))

LOST_BODY = "a request with a body cannot offer to change the protocol; send it without the Upgrade header"

DEFAULT_CORS_HEADERS = "Content-Type, Authorization, Accept, X-Requested-With"


class Gate:
    """The application's only middleware. Looks at `engine.config` anew for each request: a reload replaces it."""

    def __init__(self, engine: Engine, traffic: Traffic) -> None:
        self._engine = engine
        self._traffic = traffic

    @web.middleware
    async def middleware(self, request: web.Request, handler: Answering) -> web.StreamResponse:
        began = time.monotonic()
        self._traffic.begin()
        connection = connection_of(request)
        connection.relay = response = None
        connection.answering = task = asyncio.current_task()
        try:
            response = await self._answer(request, handler)
            return response
        except asyncio.CancelledError:
            if connection.failure is None or task is None:
                raise
            task.uncancel()
            response = cut_answer(request, connection)
            return response
        finally:
            connection.answering = None
            self._traffic.end()
            if not request.rel_url.raw_path.startswith(UNLOGGED_PATHS):
                self._log(request, response, time.monotonic() - began)

    def _log(self, request: web.Request, response: web.StreamResponse | None, duration_s: float) -> None:
        """Tell the access log of a request."""
        relay = connection_of(request).relay  # a client that leaves in mid-stream gets no response, but got something
        status = response.status if response is not None else (relay and relay.status) or CLIENT_LEFT
        size = getattr(request.writer, "output_size", 0) or (relay.size if relay else 0)  # of a stream, head included
        if response is not None:
            size = (response.content_length if isinstance(response, web.Response) else response.body_length) or size
        ip = printable(remote_ip(request.headers, connection_of(request).peer))
        what = f"{request.method} {request.rel_url.raw_path} HTTP/{request.version.major}.{request.version.minor}"
        agent = printable(request.headers.get("User-Agent", ""))
        self._traffic.access.add(Access(time.monotonic(), ip, printable(what), status, size, agent, duration_s))

    async def _answer(self, request: web.Request, handler: Answering) -> web.StreamResponse:
        # aiohttp 3.8 counts its "100 Continue" as the beginning of the answer, see `render`.
        request.writer.output_size = 0
        protocol = request.protocol
        refusal = protocol.refusal if isinstance(protocol, Handler) else None
        if (failure := connection_of(request).failure or refusal) is not None:
            return render(request, failure)
        if request.method == "OPTIONS":
            return cors_answer(request)
        if isinstance(protocol, Handler) and protocol.has_upgraded and announces_body(request):
            protocol.forget_rest()  # the body, which is no request
            response = error_answer(RequestError(LOST_BODY), request.headers.get("Accept", ""))
            response.force_close()
            return response
        path = request.rel_url.raw_path
        if (cleaned := clean_path(path)) != path:
            query = request.rel_url.raw_query_string
            return redirect(307, cleaned + (f"?{query}" if query else ""))
        if (missing := request.match_info.http_exception) is not None:
            return no_route(missing)
        try:
            if (keys := self._engine.config.api_keys) and path not in OPEN_PATHS:
                authorize(request.headers, keys)
            return await handler(request)
        except Error as error:
            return render(request, error)
        except (ConnectionError, web.HTTPException):  # the client left, or aiohttp refuses what it sent
            raise
        except Exception as error:
            log.exception("unexpected error while answering %s %s", request.method, printable(path))
            return render(request, Error(f"internal error: {type(error).__name__}; its traceback is in the log"))


def announces_body(request: web.Request) -> bool:
    return "Transfer-Encoding" in request.headers or request.headers.get("Content-Length", "0") != "0"


async def finish_head(request: web.Request, response: web.StreamResponse) -> None:
    """Say that the connection ends with this answer, if it does.

    And leave out which library answers: nobody needs it but who looks for its holes.
    """
    response.headers.pop("Server", None)
    if connection_of(request).is_ending:
        response.headers["Connection"] = "close"
        response.force_close()


def cut_answer(request: web.Request, connection: Connection) -> web.StreamResponse:
    """Return what a client gets whose answer has been cut."""
    assert connection.failure is not None
    relay = connection.relay
    if relay is None or not relay.has_begun:
        return render(request, connection.failure)
    log.warning("answer cut after %d bytes: %s", relay.size, connection.failure)
    relay.break_off(connection.failure)
    return Relayed(relay)


def render(request: web.Request, error: Error) -> web.Response:
    """Return the answer to an error. Once an answer has begun, only a broken connection can tell."""
    if getattr(request.writer, "output_size", 0):
        raise ConnectionResetError(f"the answer had begun: {error}")
    return error_answer(error, request.headers.get("Accept", ""))


def no_route(error: web.HTTPException) -> web.Response:
    """Answer 404 and 405 in the words of Go's multiplexer."""
    headers = {"X-Content-Type-Options": "nosniff"}
    if isinstance(error, web.HTTPMethodNotAllowed):
        return text_answer("Method Not Allowed\n", 405, headers | {"Allow": ", ".join(sorted(error.allowed_methods))})
    return text_answer("404 page not found\n", 404, headers)


def cors_answer(request: web.Request) -> web.Response:
    """Answer a preflight: everybody may ask for everything; whether they get it, the key decides."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    names = [name for part in wanted.split(",") if TOKEN.fullmatch(name := part.strip())]
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": ", ".join(names) if wanted else DEFAULT_CORS_HEADERS,
        "Access-Control-Max-Age": "86400",
    }
    return web.Response(status=204, headers=headers)


def clean_path(path: str) -> str:
    """Return a path without `//`, `.` and `..`; a slash at its end stays."""
    if "//" not in path and "/." not in path and path.startswith("/"):
        return path
    cleaned = posixpath.normpath(f"/{path.lstrip('/')}")
    return f"{cleaned}/" if path.endswith("/") and cleaned != "/" else cleaned
