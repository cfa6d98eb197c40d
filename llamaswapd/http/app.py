"""The front end as a whole: which path leads to which handler, and how it starts and stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aiohttp import web

from llamaswapd.activity.activity import Activity
from llamaswapd.condition import Condition
from llamaswapd.config.schema import Config
from llamaswapd.core.routing import MODEL_ROUTES
from llamaswapd.engine import Engine
from llamaswapd.http import api
from llamaswapd.http.activity import ActivityApi
from llamaswapd.http.api import Api
from llamaswapd.http.events import KEEP_ALIVE_S, Events
from llamaswapd.http.express import Express
from llamaswapd.http.failure import CutOff
from llamaswapd.http.gate import Gate, finish_head
from llamaswapd.http.health import Health
from llamaswapd.http.logs import Logs
from llamaswapd.http.machine import Machine
from llamaswapd.http.metrics import Durations, Metrics
from llamaswapd.http.pool import Pool
from llamaswapd.http.proxy import Proxy
from llamaswapd.http.recording import Recorder
from llamaswapd.http.server import Listener, Site
from llamaswapd.http.streams import Streams
from llamaswapd.http.traffic import Traffic
from llamaswapd.http.ui import Ui
from llamaswapd.machine.hardware import Hardware
from llamaswapd.machine.performance import Performance
from llamaswapd.observe import Observer

Route = web.AbstractRouteDef

CUT_AFTER_S = 1.0  # at the very end: for answers that are still on their way out
STOPPING = "llamaswapd is stopping"


class FrontEnd:
    """Everything that answers on the listening sockets. Start it once; stop it in the order of the methods."""

    def __init__(
        self,
        engine: Engine,
        observer: Observer,
        activity: Activity,
        durations: Durations,
        hardware: Hardware,
        performance: Performance,
        condition: Condition,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._streams = Streams()
        self._traffic = Traffic(observer.access)
        self._pool = Pool()
        self._recorder = Recorder(activity, engine.config.capture_buffer)
        self._express = Express(engine, observer.inflight, self._pool, self._traffic, self._recorder)
        gate = Gate(engine, self._traffic)
        proxy = Proxy(engine, observer.inflight, self._pool, self._recorder, self._streams)
        routes = [
            *model_routes(proxy),
            *api_routes(Api(engine, observer.inflight), Health(engine, condition)),
            *activity_routes(ActivityApi(activity)),
            *machine_routes(Machine(hardware, performance), Metrics(engine, activity, durations, performance)),
            web.get("/api/events", Events(engine, observer, self._streams, keep_alive_s).stream),
            *log_routes(Logs(engine, observer.log, self._streams)),
            *ui_routes(Ui()),
        ]
        self._runner = web.AppRunner(make_app(gate, routes))
        self._site: Site | None = None

    def reconfigure(self, config: Config) -> None:
        """Heed what the front end itself remembers of the configuration."""
        self._recorder.allow(config.capture_buffer)

    async def start(self, listeners: Sequence[Listener]) -> None:
        """Answer on these bound sockets."""
        await self._runner.setup()
        self._site = Site(self._runner, self._express)
        await self._site.listen(listeners)

    def drain(self, why: str = STOPPING) -> None:
        """Accept no more connections, answer what has been asked, and end what would never end by itself.

        `why` is told to the readers of event and log streams. May be called twice.
        """
        if self._site is not None:
            self._site.drain()
        self._streams.close(why)

    async def drained(self) -> None:
        """Wait until no request is being answered and, after `drain`, no connection is left."""
        if self._site is not None and self._site.is_draining:
            await self._site.drained()
        while self._traffic.active:
            await self._traffic.idle().wait()

    def cut(self, why: str) -> None:
        """End what is still being answered, visibly: an answer that has begun is broken off, others are 503 and `why`.

        It takes until `close` for the clients to have been told.
        """
        self._streams.close(why)
        if self._site is not None:
            self._site.cut(CutOff(why))

    async def close(self) -> None:
        """Cut what is still open; return when nothing is left."""
        self._streams.close(STOPPING)
        if self._site is not None:
            await self._site.close(CUT_AFTER_S)
        await self._runner.cleanup()
        self._pool.close()
        self._traffic.access.flush()


def make_app(gate: Gate, routes: Iterable[Route]) -> web.Application:
    """Return the application: one middleware and the table of routes.

    aiohttp 3.8 tries them one after the other, so the busy ones stand first and the patterns last.
    """
    app = web.Application(middlewares=[gate.middleware])
    app.on_response_prepare.append(finish_head)
    in_order = sorted(routes, key=lambda route: isinstance(route, web.RouteDef) and "{" in route.path)
    app.add_routes(in_order)
    return app


def model_routes(proxy: Proxy) -> list[Route]:
    """Everything that ends at a model."""
    by_method = {"GET": web.get, "POST": web.post}  # web.get answers HEAD too
    return [
        *(by_method[method](path, proxy.model_request) for method, path in MODEL_ROUTES),
        web.route("*", "/upstream/{rest:(?s:.*)}", proxy.upstream_request),
        web.route("*", "/comfyui", proxy.comfyui_request),
        web.route("*", "/comfyui/{rest:(?s:.*)}", proxy.comfyui_request),
    ]


def api_routes(management: Api, health: Health) -> list[Route]:
    return [
        web.get("/v1/models", management.models),
        web.get("/models", management.models),
        web.get("/health", health.health),
        web.get("/wol-health", health.wol_health),
        web.get("/running", management.running),
        web.get("/unload", management.unload_all),
        web.post("/api/models/unload", management.unload_all_for_json),
        web.post("/api/models/unload/{name:(?s:.*)}", management.unload),
        web.post("/api/models/load/{name:(?s:.*)}", management.load),
        web.get("/api/version", management.version),
        web.get("/api/profiles", management.profiles),
        web.put("/api/profiles/active", management.activate_profile),
        web.post("/api/inflight/{id}/cancel", management.cancel),
        web.get("/upstream", api.to_ui_models),
        web.get("/ui", api.to_ui_folder),
        web.get("/", api.to_ui),
    ]


def activity_routes(activity: ActivityApi) -> list[Route]:
    return [
        web.get("/api/metrics", activity.all_rows),
        web.get("/api/metrics/activity", activity.page),
        web.get("/api/metrics/stats", activity.stats),
        web.get("/api/captures/{id}", activity.capture),
    ]


def machine_routes(machine: Machine, metrics: Metrics) -> list[Route]:
    return [
        web.get("/api/hardware", machine.hardware),
        web.get("/api/performance", machine.performance),
        web.get("/metrics", metrics.metrics),
    ]


def log_routes(logs: Logs) -> list[Route]:
    return [
        web.get("/logs", logs.show),
        web.get("/logs/stream", logs.stream_combined),
        web.get("/logs/stream/{name:(?s:.*)}", logs.stream),
    ]


def ui_routes(ui: Ui) -> list[Route]:
    return [
        web.get("/ui/{rest:(?s:.*)}", ui.file),
        web.get("/favicon.ico", ui.favicon),
    ]
