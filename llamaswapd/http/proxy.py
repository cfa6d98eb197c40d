"""The data plane: where a request goes, the wait until its model is ready, and the way there and back.

A request's way: `model_request` finds what is meant and holds the lease, `_forward` sends, `Relay` passes the answer
on. `/upstream` and `/comfyui`, whose models stand in the path, join it at the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote

from aiohttp import web

from llamaswapd.config.regex import compile_re2, without_start
from llamaswapd.config.schema import COMFYUI_ID, ModelConfig, PeerModel
from llamaswapd.core import routing
from llamaswapd.core.filters import Edit, edit_for
from llamaswapd.core.routing import JsonReader, ModelReader, MultipartReader, QueryReader, UrlencodedReader
from llamaswapd.engine import Engine, Resolved
from llamaswapd.errors import Cancelled, Conflict, Error, NotFound, RequestError, UnknownModel, UpstreamError, envelope
from llamaswapd.http.answers import redirect
from llamaswapd.http.awaited import Awaited
from llamaswapd.http.body import Body
from llamaswapd.http.connect import connect
from llamaswapd.http.failure import explained
from llamaswapd.http.forward import request_head, target_of
from llamaswapd.http.loading import show_loading
from llamaswapd.http.ordinary import Relayed, cancellable, exchange
from llamaswapd.http.pool import Pool
from llamaswapd.http.recording import Recorder, about_request
from llamaswapd.http.server import cancelled_if_gone
from llamaswapd.http.streams import Streams
from llamaswapd.http.traffic import CLIENT_LEFT
from llamaswapd.http.upgrade import offers_websocket, passed_on, wanted_protocol
from llamaswapd.http.upstream import Stale
from llamaswapd.observe.inflight import Inflight

log = logging.getLogger(__name__)

LOADING_PATH = "/v1/chat/completions"  # the only clients that show reasoning
INLINE_EDIT_LIMIT = 64 * 1024  # bytes of JSON; of tiny members, more would hold up every stream for a tenth of a second
ASSET_LIMIT = 2048  # characters of a path that may be that of an asset; searching a long one may take seconds
STEP_BYTES = 64 * 1024  # of a body that are looked at before others have their turn
COMFYUI_PATH = "/comfyui/"


class Proxy:
    """The handlers of all requests that end at a model's server or at a peer."""

    def __init__(self, engine: Engine, inflight: Inflight, pool: Pool, recorder: Recorder, streams: Streams) -> None:
        self._engine = engine
        self._inflight = inflight
        self._pool = pool
        self._recorder = recorder
        self._streams = streams

    # ---- the three ways to name a model

    async def model_request(self, request: web.Request) -> web.StreamResponse:
        """Answer a request that names its model in body or query."""
        target = target_of(request)
        path, _, query = target.partition("?")
        relay = Awaited(request, path, routing.forwarded_path(path))
        with contextlib.ExitStack() as stack:
            stack.enter_context(cancelled_if_gone(request))
            body = stack.enter_context(Body(request))
            reader = routing.reader(request.method, request.headers.get("Content-Type", ""), query)
            name = await _find_name(reader, body)
            resolved = self._resolved(relay, name)
            stack.callback(resolved.release)
            to = resolved.target
            if _is_ignored(request, to):
                resolved.release()
            else:
                stack.enter_context(self._attended(relay, to, resolved.selector))
            await _rewrite(body, reader, edit_for(to, name, resolved.name))
            sent = to.model if isinstance(to, PeerModel) else resolved.name
            if sent != name:
                if isinstance(reader, UrlencodedReader) and reader.span is not None:
                    body.splice(*reader.span, routing.urlencoded(sent).encode())
                elif isinstance(reader, QueryReader | UrlencodedReader):
                    target = f"{path}?{routing.with_model(query, sent)}"
            if isinstance(to, PeerModel):
                await self._forward(request, relay, to, body, routing.forwarded_path(target))
            else:
                await self._forward_when_ready(request, relay, to, body, target, reader)
        return Relayed(relay)

    async def upstream_request(self, request: web.Request) -> web.StreamResponse:
        """Answer `/upstream/{model}/{path}`: any request, passed on as it is to the model in its path."""
        path, mark, query = target_of(request).partition("?")
        target, rest = routing.split_upstream(self._engine.config, path, self._engine.naming.pins())
        if rest is None:
            return _to_folder(request, path, mark + query)
        if isinstance(target, ModelConfig) and self._is_asset(rest) and not self._engine.is_ready(target.id):
            raise Conflict(f"model {target.id} is not loaded; path matches upstream.ignorePaths")
        if isinstance(target, ModelConfig) and rest == "/" and request.method == "GET":
            self._engine.forgive(target.id)  # by which llama-swap's interface loads, and so do operators
        is_model_route = (request.method, rest) in routing.MODEL_ROUTES
        return await self._pass_on(request, target, rest, mark + query, is_attended=is_model_route)

    async def comfyui_request(self, request: web.Request) -> web.StreamResponse:
        """Answer `/comfyui/{path}` from the model of that name; only its front page may load it."""
        path, mark, query = target_of(request).partition("?")
        model = self._engine.config.models.get(COMFYUI_ID)
        if model is None:
            raise NotFound(f"local model {COMFYUI_ID} not found")
        _, slash, rest = path[1:].partition("/")  # the first segment may be escaped
        if not slash:
            return _to_folder(request, COMFYUI_PATH.rstrip("/"), mark + query)
        if rest and not self._engine.is_ready(model.id):
            raise Conflict(f"model {COMFYUI_ID} is not loaded; only {COMFYUI_PATH} can start it")
        return await self._pass_on(request, model, slash + rest, mark + query, is_attended=False)

    # ---- what they have in common

    async def _pass_on(
        self, request: web.Request, target: ModelConfig | PeerModel, path: str, query: str, *, is_attended: bool
    ) -> web.StreamResponse:
        """Pass a request on as it is, under another path."""
        relay = Awaited(request, path, path)
        with contextlib.ExitStack() as stack:
            stack.enter_context(cancelled_if_gone(request))
            body = stack.enter_context(Body(request))
            if is_attended and not _is_ignored(request, target):
                stack.enter_context(self._attended(relay, target, None))
            if isinstance(target, PeerModel):
                await self._forward(request, relay, target, body, path + query)
            else:
                await self._forward_when_ready(request, relay, target, body, path + query, None)
        return Relayed(relay)

    async def _forward_when_ready(
        self,
        request: web.Request,
        relay: Awaited,
        model: ModelConfig,
        body: Body,
        target: str,
        reader: ModelReader | None,
    ) -> None:
        """Wait until the model is ready and forward; `reader` still reads the body, if anybody has to."""
        if _is_ignored(request, model):
            if not self._engine.is_ready(model.id):
                raise Conflict(f"model {model.id} is not loaded; ignored websocket requests cannot start it")
            with self._streams.including(relay.cancel):  # a page that is left open must not hold up the end
                await self._forward(request, relay, model, body, target)
            return
        with self._engine.lease(model.id) as lease:
            relay.lease = lease
            if not lease.is_granted:
                await _read_on(reader, body)
                if reader is not None and self._shows_loading(model, reader, target):
                    await self._answer_while_loading(request, relay, model, body, target)
                    return
                await lease.granted()
            await self._forward(request, relay, model, body, routing.forwarded_path(target) if reader else target)

    def _resolved(self, relay: Awaited, name: str) -> Resolved:
        """Return where a name leads; that it leads nowhere is worth a row of the activity."""
        try:
            return self._engine.resolve(name)
        except UnknownModel:
            relay.model_id = name
            with self._attended(relay, None, None):
                raise

    def _is_asset(self, rest: str) -> bool:
        path = unquote(rest)
        if len(path) > ASSET_LIMIT:
            return False
        return any(_pattern(each).search(path) for each in self._engine.config.upstream.ignore_paths)

    def _shows_loading(self, model: ModelConfig, reader: ModelReader, target: str) -> bool:
        own = model.send_loading_state
        wants = self._engine.config.send_loading_state if own is None else own
        return bool(wants and target.startswith(LOADING_PATH) and reader.stream)

    @contextlib.contextmanager
    def _attended(self, relay: Awaited, target: ModelConfig | PeerModel | None, selector: str | None) -> Iterator[None]:
        """Show the request while it is in flight, let it be cancelled, and record a POST when it has ended."""
        if target is not None:
            relay.model_id = target.id
            relay.about = about_request(self._engine.config, target, selector)
            relay.to_peer = isinstance(target, PeerModel)
        is_recorded = relay.method == "POST"
        if is_recorded:
            self._recorder.begin(relay)
        relay.show_in(self._inflight)
        failure: Error | None = None
        try:
            with cancellable(relay):
                yield
        except Cancelled as error:
            failure = error
            if not relay.has_begun:
                raise
            relay.break_off(error)
        except Error as error:
            failure = error
            raise
        except asyncio.CancelledError:
            failure = relay.connection.failure  # None: the client has left
            raise
        finally:
            relay.show_no_more()
            if is_recorded:
                relay.outcome = relay.status or (failure.status if failure is not None else CLIENT_LEFT)
                relay.ended = relay.ended or time.monotonic()
                self._recorder.end(relay, failure)

    async def _answer_while_loading(
        self, request: web.Request, relay: Awaited, model: ModelConfig, body: Body, target: str
    ) -> None:
        """Begin the answer with the model's loading; the status is 200 from now on, whatever happens."""
        assert relay.lease is not None
        relay.begin_stream()
        try:
            await show_loading(self._engine, relay.lease, relay.send_event)
            await self._forward(request, relay, model, body, target)
        except Error as error:
            relay.failure = error
            relay.send_event(envelope(error.status, str(error)))
            relay.end_stream()

    async def _forward(
        self, request: web.Request, relay: Awaited, target: ModelConfig | PeerModel, body: Body, path: str
    ) -> None:
        """Send the request and pass the answer on.

        Raises while the client has seen nothing of an answer; afterwards the relay shows it that the answer is cut.
        """
        try:
            await self._exchange(request, relay, target, body, path)
        except UpstreamError as error:
            failure = await explained(relay.lease, target, error)
            if failure is None:
                relay.end_whole()
                return
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
            log.exception("<%s> unexpected error in the middle of an answer", target.id)
            relay.break_off(Error(f"internal error: {type(error).__name__}"))

    async def _exchange(
        self, request: web.Request, relay: Awaited, target: ModelConfig | PeerModel, body: Body, path: str
    ) -> None:
        peer = target.peer if isinstance(target, PeerModel) else None
        to = peer or target
        assert not isinstance(to, PeerModel)
        base = self._pool.of(to.proxy, to.timeouts)
        pool = base.pool
        upgrade = wanted_protocol(request)
        head = request_head(
            request,
            base.target(path),
            body.length_to_send,
            host=pool.origin.authority,
            client=relay.connection.peer,
            api_keys=self._engine.config.api_keys,
            peer=peer,
            is_recorded=relay.budget is not None,
            is_plain=relay.has_own_stream,
            upgrade=upgrade,
            authorization=pool.authorization,
        )
        with passed_on(request, relay) if upgrade else contextlib.nullcontext():
            # A server may close a kept connection in the very moment it is used. What cannot be sent twice takes a new
            # one.
            if body.is_complete and not upgrade and (kept := pool.take()) is not None:
                try:
                    await exchange(relay, kept, head, body)
                    return
                except Stale:
                    pass
            await exchange(relay, await connect(pool), head, body, upgrades=bool(upgrade))


def _is_ignored(request: web.Request, target: ModelConfig | PeerModel) -> bool:
    """Whether a request is a websocket that passes its model by: it takes no slot, starts nothing and is not shown."""
    return isinstance(target, ModelConfig) and target.ignores_websockets and offers_websocket(request)


@lru_cache(maxsize=128)
def _pattern(text: str) -> re.Pattern[str]:
    return compile_re2(without_start(text))


def _to_folder(request: web.Request, path: str, query: str) -> web.StreamResponse:
    """Send the client to the same path with a slash behind it, with the same method."""
    return redirect(301 if request.method in ("GET", "HEAD") else 308, f"{path}/{query}")


async def _find_name(reader: ModelReader, body: Body) -> str:
    """Read as much of the body as it takes to find the model's name."""
    while reader.name is None and not reader.done and (piece := await body.read_more()):
        await _feed(reader, piece)
    return reader.finish()


async def _read_on(reader: ModelReader | None, body: Body) -> None:
    """Read the body to its end: only then does aiohttp read on, and notice when the client leaves."""
    while piece := await body.read_more():
        if reader is not None:
            await _feed(reader, piece)


async def _feed(reader: ModelReader, piece: bytes) -> None:
    """Let a reader see a piece of the body, which may be megabytes."""
    if len(piece) <= STEP_BYTES:
        reader.feed(piece)
        return
    for start in range(0, len(piece), STEP_BYTES):
        reader.feed(piece[start : start + STEP_BYTES])
        await asyncio.sleep(0)


async def _rewrite(body: Body, reader: ModelReader, edit: Edit) -> None:
    """Change in the body what the configuration wants changed."""
    if isinstance(reader, JsonReader):
        if body.length is None:  # JSON reaches the model with a length, also when it came in chunks
            await _read_on(reader, body)
        if edit.is_needed:
            await _read_on(reader, body)
            whole = await body.whole()
            if len(whole) <= INLINE_EDIT_LIMIT:
                await body.replace(edit.pieces(whole))
            else:
                await body.replace(await asyncio.to_thread(edit.pieces, whole))
    elif isinstance(reader, MultipartReader) and reader.span is not None and edit.renames:
        body.splice(*reader.span, edit.sent.encode())
