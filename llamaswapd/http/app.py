"""The front end as a whole: which path leads to which handler, and how it starts and stops."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence

from aiohttp import web

from llamaswapd.core.routing import MODEL_ROUTES
from llamaswapd.engine import Engine
from llamaswapd.http import api
from llamaswapd.http.api import Api
from llamaswapd.http.events import KEEP_ALIVE_S, Events
from llamaswapd.http.express import Express
from llamaswapd.http.gate import Gate, hide_server
from llamaswapd.http.logs import Logs
from llamaswapd.http.proxy import Proxy
from llamaswapd.http.server import Site
from llamaswapd.http.streams import Streams
from llamaswapd.http.traffic import Traffic
from llamaswapd.http.upstream import Pool
from llamaswapd.observe import Observer

CUT_AFTER_S = 1.0  # at the very end: for answers that are still on their way out


class FrontEnd:
    """Everything that answers on the listening sockets. Start it once; stop it in the order of the methods."""

    def __init__(self, engine: Engine, observer: Observer, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._streams = Streams()
        self._traffic = Traffic(observer.access)
        self._pool = Pool()
        self._express = Express(engine, observer.inflight, self._pool, self._traffic)
        events = Events(engine, observer, self._streams, keep_alive_s)
        logs = Logs(engine, observer.log, self._streams)
        proxy = Proxy(engine, observer.inflight, self._pool)
        app = make_app(Gate(engine, self._traffic), proxy, Api(engine), logs, events)
        self._runner = web.AppRunner(app)
        self._site: Site | None = None

    async def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Answer on these bound sockets."""
        await self._runner.setup()
        self._site = Site(self._runner, self._express)
        await self._site.listen(sockets, tls)

    def stop_accepting(self) -> None:
        """Accept no more connections. Those that are open go on."""
        if self._site is not None:
            self._site.stop_listening()

    def close_streams(self) -> None:
        """End event and log streams, which would never end by themselves."""
        self._streams.close()

    async def drained(self) -> None:
        """Wait until no request is being answered."""
        await self._traffic.idle()

    async def close(self) -> None:
        """Cut what is still open; return when nothing is left."""
        self.close_streams()
        if self._site is not None:
            await self._site.close(CUT_AFTER_S)
        await self._runner.cleanup()
        self._pool.close()
        self._traffic.access.flush()


def make_app(gate: Gate, proxy: Proxy, management: Api, logs: Logs, events: Events) -> web.Application:
    """Return the application: one middleware and the table of routes.

    aiohttp 3.8 tries them one after the other, so the busy ones stand first and the patterns last.
    """
    app = web.Application(middlewares=[gate.middleware])
    app.on_response_prepare.append(hide_server)
    by_method = {"GET": web.get, "POST": web.post}  # web.get answers HEAD too
    app.add_routes(
        [
            *(by_method[method](path, proxy.model_request) for method, path in MODEL_ROUTES),
            web.get("/v1/models", management.models),
            web.get("/models", management.models),
            web.get("/health", api.health),
            web.get("/wol-health", api.health),
            web.get("/running", management.running),
            web.get("/unload", management.unload_all),
            web.post("/api/models/unload", management.unload_all_for_json),
            web.get("/api/events", events.stream),
            web.get("/api/version", management.version),
            web.get("/logs", logs.show),
            web.get("/logs/stream", logs.stream_combined),
            web.get("/upstream", api.to_ui_models),
            web.get("/", api.to_ui),
            web.route("*", "/upstream/{rest:.*}", proxy.upstream_request),
            web.post("/api/models/unload/{name:.*}", management.unload),
            web.get("/logs/stream/{name:.*}", logs.stream),
        ]
    )
    return app
