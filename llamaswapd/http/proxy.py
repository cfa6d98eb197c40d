"""The data plane: which model a request is for, the wait until it is ready, and the way there and back.

A request's way: `model_request` finds the model and holds the lease, `_forward` sends, `Relay` passes the answer on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from aiohttp import web

from llamaswapd.config.schema import ModelConfig
from llamaswapd.core import filters, routing
from llamaswapd.core.routing import JsonReader, ModelReader, MultipartReader
from llamaswapd.engine import Engine, Lease
from llamaswapd.errors import Error, RequestError, UpstreamError, envelope
from llamaswapd.http.answers import redirect
from llamaswapd.http.body import Body
from llamaswapd.http.failure import explained
from llamaswapd.http.forward import request_head, target_of
from llamaswapd.http.loading import show_loading
from llamaswapd.http.ordinary import Awaited, Relayed
from llamaswapd.http.relay import Relay
from llamaswapd.http.server import cancelled_if_gone
from llamaswapd.http.upstream import Pool, Stale
from llamaswapd.observe import Inflight

log = logging.getLogger(__name__)

LOADING_PATH = "/v1/chat/completions"  # the only clients that show reasoning
INLINE_EDIT_LIMIT = 256 * 1024  # bytes of JSON; editing more would hold up every stream for milliseconds


class Proxy:
    """The handlers of all requests that end at a model's server."""

    def __init__(self, engine: Engine, inflight: Inflight, pool: Pool) -> None:
        self._engine = engine
        self._inflight = inflight
        self._pool = pool

    async def model_request(self, request: web.Request) -> web.StreamResponse:
        """Answer a request that names its model in body or query."""
        with cancelled_if_gone(request), Body(request) as body:
            target = target_of(request)
            path, _, query = target.partition("?")
            reader = routing.reader(request.method, request.headers.get("Content-Type", ""), query)
            name = await _find_name(reader, body)
            model = routing.target(self._engine.config, name)
            await _rewrite(body, reader, model, name)
            relay = Awaited(request, model.id, path)
            with self._shown(relay), self._engine.lease(model.id) as lease:
                if not lease.is_granted:
                    await _read_on(reader, body)
                    if reader.stream and path.startswith(LOADING_PATH) and self._shows_loading(model):
                        return await self._answer_while_loading(request, relay, lease, body)
                    await lease.granted()
                await self._forward(request, relay, lease, body, routing.forwarded_path(target))
                return Relayed(relay)

    async def upstream_request(self, request: web.Request) -> web.StreamResponse:
        """Answer `/upstream/{model}/{path}`: any request, passed on as it is to the model in its path."""
        path, mark, query = target_of(request).partition("?")
        model, rest = routing.split_upstream(self._engine.config, path)
        if rest is None:
            return redirect(301 if request.method in ("GET", "HEAD") else 308, f"{path}/{mark}{query}")
        with contextlib.ExitStack() as stack:
            stack.enter_context(cancelled_if_gone(request))
            body = stack.enter_context(Body(request))
            relay = Awaited(request, model.id, rest)
            if (request.method, rest) in routing.MODEL_ROUTES:
                stack.enter_context(self._shown(relay))
            lease = stack.enter_context(self._engine.lease(model.id))
            if not lease.is_granted:
                await body.finish()
                await lease.granted()
            await self._forward(request, relay, lease, body, rest + mark + query)
            return Relayed(relay)

    def _shows_loading(self, model: ModelConfig) -> bool:
        own = model.send_loading_state
        return self._engine.config.send_loading_state if own is None else own

    @contextlib.contextmanager
    def _shown(self, relay: Relay) -> Iterator[None]:
        relay.show_in(self._inflight)
        try:
            yield
        finally:
            relay.show_no_more()

    async def _answer_while_loading(
        self, request: web.Request, relay: Awaited, lease: Lease, body: Body
    ) -> web.StreamResponse:
        """Begin the answer with the model's loading; the status is 200 from now on, whatever happens."""
        relay.begin_stream()
        try:
            await show_loading(lease, relay.send_event)
            await self._forward(request, relay, lease, body, target_of(request))
        except Error as error:
            relay.send_event(envelope(error.status, str(error)))
            relay.end_stream()
        return Relayed(relay)

    async def _forward(self, request: web.Request, relay: Awaited, lease: Lease, body: Body, target: str) -> None:
        """Send the request to the model and pass the answer on.

        Raises while the client has seen nothing of an answer; afterwards the relay shows it that the answer is cut.
        """
        try:
            await self._exchange(request, relay, lease.model, body, target)
        except UpstreamError as error:
            failure = await explained(lease, error)
            if not relay.has_begun:
                raise failure from error
            log.warning("answer cut after %d bytes: %s", relay.size, failure)
            relay.break_off(failure)
        except RequestError as error:
            if not relay.has_begun:
                raise
            relay.break_off(error)
        except Exception as error:
            if not relay.has_begun:
                raise
            log.exception("<%s> unexpected error in the middle of an answer", lease.model.id)
            relay.break_off(Error(f"internal error: {type(error).__name__}"))

    async def _exchange(
        self, request: web.Request, relay: Awaited, model: ModelConfig, body: Body, target: str
    ) -> None:
        pool, prefix = self._pool.of(model.proxy)
        host = f"{pool.origin.host}:{pool.origin.port}"
        head = request_head(request, prefix + target, body.length_to_send, self._engine.config.api_keys, host)
        # A server may close a kept connection in the very moment it is used. What cannot be sent twice takes a new one.
        if body.is_complete and (kept := pool.take()) is not None:
            try:
                await relay.exchange(kept, head, body)
                return
            except Stale:
                pass
        await relay.exchange(await pool.connect(), head, body)


async def _find_name(reader: ModelReader, body: Body) -> str:
    """Read as much of the body as it takes to find the model's name."""
    while reader.name is None and not reader.done and (piece := await body.read_more()):
        reader.feed(piece)
    return reader.finish()


async def _read_on(reader: ModelReader, body: Body) -> None:
    """Read the body to its end: only then does aiohttp read on, and notice when the client leaves."""
    while piece := await body.read_more():
        reader.feed(piece)


async def _rewrite(body: Body, reader: ModelReader, model: ModelConfig, name: str) -> None:
    """Change in the body what the model's configuration wants changed."""
    if isinstance(reader, JsonReader):
        if body.length is None:  # JSON reaches the model with a length, also when it came in chunks
            await _read_on(reader, body)
        if filters.needed(model, name):
            await _read_on(reader, body)
            whole = await body.whole()
            if len(whole) <= INLINE_EDIT_LIMIT:
                body.replace(filters.apply(whole, model, name))
            else:
                body.replace(await asyncio.to_thread(filters.apply, whole, model, name))
    elif isinstance(reader, MultipartReader) and reader.span is not None and model.use_model_name:
        body.splice(*reader.span, model.use_model_name.encode())
