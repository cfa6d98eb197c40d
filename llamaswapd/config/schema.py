"""Every key of the configuration: type, default, unit, one line each.

The fields read like the manual. Their YAML spelling is the camel-cased field name unless a `Key` says otherwise, so the
loader, the schema, the example and the manual all come from this file. Models are frozen: what the loader returns does
not change. Nothing here reads a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PrivateAttr


@dataclass(frozen=True)
class Key:
    """The YAML spelling of a field, where it is not simply the camel-cased field name."""

    name: str


# No key of the file: the loader fills such a field in.
DERIVED = Key("")


@dataclass(frozen=True)
class Lenient:
    """A choice whose case and surrounding blanks do not count, and whose unknown values mean the default."""


@dataclass(frozen=True)
class CommaSeparated:
    """Written as one text of names with commas between them; blanks and repeats are dropped, the rest is sorted."""


@dataclass(frozen=True)
class Words:
    """Words of a command line: written as one text, split as `cmd` is, or as a list with a word in each item."""


@dataclass(frozen=True)
class UnitSettings:
    """Settings as in unit files: each a text or a list of texts, as written."""


@dataclass(frozen=True)
class Duration:
    """A time in Go's spelling, such as `15s` or `1m30s`; held in seconds."""


class Section(BaseModel, frozen=True, extra="forbid"):
    """Base of every mapping in the file. Works alike on pydantic 1.10 (Debian 12) and 2."""

    def having(self, **changes: Any) -> Self:
        """Return the same with some fields changed."""
        return type(self)(**{**dict(self), **changes})

    def said(self) -> dict[str, Any]:
        """Return the fields that are not as they are by default."""
        defaults = dict(type(self)())
        return {name: value for name, value in self if value != defaults[name]}


class Filters(Section, frozen=True):
    """What is removed from and set in JSON request bodies."""

    strip_params: Annotated[tuple[str, ...], CommaSeparated()] = Field(
        default=(), description="members removed; dotted paths; never `model`"
    )
    set_params: Mapping[str, Any] = Field(
        default={}, repr=False, description="members set or replaced; dotted path to any value"
    )
    set_params_by_id: Annotated[Mapping[str, Mapping[str, Any]], Key("setParamsByID")] = Field(
        default={},
        repr=False,
        description="the same for the name the client used; overrides setParams; each key becomes an alias",
    )


class Timeouts(Section, frozen=True):
    """Limits of the connections to a model's server; all in seconds."""

    connect: int = Field(default=30, description="seconds for the connection to be made; 0 no limit")
    keepalive: int = Field(default=30, description="seconds between TCP keep-alive probes; 0 the kernel's default")
    response_header: int = Field(default=0, description="seconds from the request to the answer's head; 0 no limit")
    tls_handshake: int = Field(default=10, description="seconds for the TLS handshake; 0 no limit")
    expect_continue: int = Field(
        default=1, description="seconds that a body waits for `100 Continue`; without effect: bodies do not wait"
    )
    idle_conn: int = Field(default=90, description="seconds that an idle connection is kept; 0 for ever")


class PeerTimeouts(Timeouts, frozen=True):
    """The same for a peer, which is to answer within a minute."""

    response_header: int = Field(default=60, description="seconds from the request to the answer's head; 0 no limit")


class Capabilities(Section, frozen=True):
    """What a model can do, told in listings; nothing is enforced."""

    in_: Annotated[tuple[str, ...], Key("in")] = Field(default=(), description="what it takes: text, audio, image")
    out: tuple[str, ...] = Field(default=(), description="what it makes: text, audio, image")
    tools: bool = Field(default=False, description="it calls functions")
    reranker: bool = Field(default=False, description="it ranks documents")
    context: int = Field(default=0, description="tokens of context; 0 unknown")


class Compat(Section, frozen=True):
    """Ways around the peculiarities of a model's server."""

    ignore_websockets: bool = Field(
        default=False, description="websockets neither start the model nor count as use of it"
    )


class Container(Section, frozen=True):
    """An image whose container serves the model, in place of a program."""

    image: str = Field(default="", description="what to run, with registry and tag")
    args: Annotated[tuple[str, ...], Words()] = Field(default=(), description="words after the image: the server's own")
    port: int = Field(
        default=0, description="port of the server inside, published as ${PORT}; 0: it shares the host's network"
    )
    volumes: tuple[str, ...] = Field(default=(), description="HOST:CONTAINER[:OPTIONS], such as /srv/models:/models:ro")
    gpus: Annotated[tuple[str, ...], Words()] = Field(
        default=(), description="all, none, amd, intel, or NVIDIA's by number or UUID"
    )
    network: str = Field(default="", description="network mode or name; empty: the default, or with no port the host's")
    pull: Literal["missing", "always", "never"] = Field(default="missing", description="when the image is fetched")
    options: Annotated[tuple[str, ...], Words()] = Field(default=(), description="further words of `run`")


# The model behind /comfyui/; its page holds a websocket open for as long as it is shown.
COMFYUI_ID = "comfyui_auto"
COMFYUI_SLOTS = 50


class ModelConfig(Section, frozen=True):
    """One model, after macros, defaults and globals have been applied."""

    id: Annotated[str, DERIVED] = Field(default="", description="the key under `models`")
    cmd: str = Field(default="", description="command line, split without a shell")
    cmd_stop: str = Field(default="", description="command run to stop the model, instead of SIGTERM")
    podman: Container | None = Field(default=None, description="a container of podman's that is run in place of cmd")
    docker: Container | None = Field(default=None, description="a container of docker's that is run in place of cmd")
    proxy: str = Field(default="http://localhost:${PORT}", description="base URL of the model's server")
    check_endpoint: str = Field(
        default="/health", description="path polled until it answers 200; `none`: ready at once"
    )
    ready_log: str = Field(default="", description="regular expression; a log line that matches it triggers a probe")
    ttl: int = Field(default=-1, description="idle seconds before unloading; 0 never; -1 the global value")
    unload_timeout: int = Field(default=0, description="seconds between stop signal and SIGKILL; 0 the global value")
    health_check_timeout: Annotated[int, DERIVED] = Field(
        default=120, description="seconds the model may take to become ready"
    )
    aliases: tuple[str, ...] = Field(default=(), description="further names")
    env: tuple[str, ...] = Field(default=(), repr=False, description="NAME=value entries added to the environment")
    name: str = Field(default="", description="shown in listings")
    description: str = Field(default="", description="shown in listings")
    unlisted: bool = Field(default=False, description="hidden from /v1/models")
    use_model_name: str = Field(default="", description="value of `model` sent to the server")
    filters: Filters = Field(default=Filters(), description="changes to JSON bodies")
    concurrency_limit: int = Field(default=0, description="requests admitted at once; 0 means 10")
    send_loading_state: bool | None = Field(
        default=None, description="stream progress while loading; unset: the global value"
    )
    metadata: Mapping[str, Any] = Field(default={}, description="passed to /v1/models under meta.llamaswap")
    capabilities: Capabilities = Field(default=Capabilities(), description="what it can do, shown in listings")
    timeouts: Timeouts = Field(default=Timeouts(), description="limits of the connections to its server")
    compat: Compat = Field(default=Compat(), description="ways around peculiarities of its server")
    macros: Mapping[str, Any] = Field(default={}, description="macros of this model: text, numbers or booleans")
    systemd: Annotated[Mapping[str, tuple[str, ...]], UnitSettings()] = Field(
        default={},
        description="unit settings spelled as in unit files, each a list of its assignments; defaults merged in",
    )
    port: Annotated[int | None, DERIVED] = Field(default=None, description="allocated port, when cmd uses ${PORT}")
    fingerprint: Annotated[str, DERIVED] = Field(default="", description="the same as long as the unit is the same")
    named_port: Annotated[int | None, DERIVED] = Field(
        default=None, description="port of proxy, if `env` or cmd name it and `env` is kept from us"
    )

    @property
    def container(self) -> Container | None:
        """The container that is run in place of `cmd`."""
        return self.podman or self.docker

    @property
    def slots(self) -> int:
        """How many requests may be admitted at once."""
        slots = self.concurrency_limit if self.concurrency_limit > 0 else 10
        return max(slots, COMFYUI_SLOTS) if self.id == COMFYUI_ID else slots

    @property
    def ignores_websockets(self) -> bool:
        """Whether websockets pass it by: they do not start it, and do not count."""
        return self.compat.ignore_websockets or self.id == COMFYUI_ID

    def names_port(self, port: int) -> bool:
        """Whether command or environment hold this number.

        If not, a server on that port is somebody else's, and meant to be: `cmd` may be a tunnel or a mere `sleep`.
        """
        number = re.compile(rf"(?<![0-9]){port}(?![0-9])")
        return port == self.named_port or any(number.search(text) for text in (self.cmd, *self.env))

    @property
    def listed_aliases(self) -> tuple[str, ...]:
        """All further names: the explicit ones, then those that `setParamsByID` makes."""
        by_id = tuple(key for key in self.filters.set_params_by_id if key != self.id)
        return self.aliases + tuple(key for key in by_id if key not in self.aliases)


class Group(Section, frozen=True):
    """Models that share a swapping rule."""

    swap: bool = Field(default=True, description="at most one member runs at a time")
    exclusive: bool = Field(default=True, description="using a member stops the models of other groups")
    persistent: bool = Field(default=False, description="members are never stopped by other groups")
    members: tuple[str, ...] = Field(default=(), description="model ids")


class Matrix(Section, frozen=True):
    """Which models may run together, as expressions over model ids."""

    vars: Mapping[str, str] = Field(default={}, description="short names for model ids")
    evict_costs: Annotated[Mapping[str, int], Key("evict_costs")] = Field(
        default={}, description="what stopping a model costs, by variable or model id; 1 if not given"
    )
    sets: Mapping[str, str] = Field(default={}, description="expressions by name; their order breaks ties")


class RouterSettings(Section, frozen=True):
    groups: Mapping[str, Group] = Field(default={}, description="as the top-level key")
    matrix: Matrix | None = Field(default=None, description="as the top-level key")


class Router(Section, frozen=True):
    """Which rule decides who makes room."""

    use: str = Field(default="group", description="group or matrix")
    settings: RouterSettings = Field(default=RouterSettings(), description="both may stand here; `use` decides")


class Fifo(Section, frozen=True):
    priority: Mapping[str, int] = Field(
        default={}, description="by model id: higher ones come first in the queue; 0 if not given"
    )


class SchedulerSettings(Section, frozen=True):
    fifo: Fifo = Field(default=Fifo(), description="settings of the queue")


class Scheduling(Section, frozen=True):
    use: str = Field(default="fifo", description="fifo, the only one")
    settings: SchedulerSettings = Field(default=SchedulerSettings(), description="its settings")


class Routing(Section, frozen=True):
    """The newer home of groups and matrix, and of priorities."""

    router: Router = Field(default=Router(), description="who makes room")
    scheduler: Scheduling = Field(default=Scheduling(), description="who is served first")


class SpilloverSettings(Section, frozen=True):
    spillover: int = Field(default=1, description="requests per active target before the next one is used")


Strategy = Literal["pin", "warm", "spillover"]


class Selector(Section, frozen=True):
    """A name that stands for one of several models, chosen for each request."""

    strategy: str = Field(default="", description="pin, warm or spillover")
    targets: tuple[str, ...] = Field(default=(), description="models, aliases or peer models, in order of preference")
    settings: SpilloverSettings = Field(default=SpilloverSettings(), description="settings of the strategy")
    name: str = Field(default="", description="shown in listings")
    description: str = Field(default="", description="shown in listings")
    unlisted: bool = Field(default=False, description="hidden from /v1/models")
    metadata: Mapping[str, Any] = Field(default={}, description="passed to /v1/models under meta.llamaswap")


class Profile(Section, frozen=True):
    """Names that mean something else while the profile is active."""

    description: str = Field(default="", description="shown in listings")
    pins: Mapping[str, str] = Field(
        default={}, description="name to model, alias, peer model or selector; nothing behind it disables the name"
    )


class Peer(Section, frozen=True):
    """Another server that has models, reached over the network."""

    id: Annotated[str, DERIVED] = Field(default="", description="the key under `peers`")
    proxy: str = Field(default="", description="base URL; the path of the request is appended")
    models: tuple[str, ...] = Field(default=(), description="the models that it serves")
    api_key: str = Field(default="", repr=False, description="sent in place of the client's key")
    filters: Filters = Field(default=Filters(), description="changes to JSON bodies")
    timeouts: PeerTimeouts = Field(default=PeerTimeouts(), description="limits of the connections to it")


@dataclass(frozen=True)
class PeerModel:
    """One model of a peer, by the peer's own name for it."""

    peer: Peer
    model: str

    @property
    def id(self) -> str:
        """The name that always means it."""
        return f"{self.peer.id}/{self.model}"


class Performance(Section, frozen=True):
    """How the machine's load is watched."""

    disabled: bool = Field(default=False, description="do not watch it")
    every: Annotated[float, Duration()] = Field(default=5.0, description="time between samples; at least 5s")


class Store(Section, frozen=True):
    path: str = Field(default="", description="SQLite file that keeps the activity; without it memory does")


class ActivityPage(Section, frozen=True):
    session_id: Annotated[tuple[str, ...], Key("session_id")] = Field(
        default=("X-Session-ID", "X-Litellm-Session-Id"), description="request headers that name a session"
    )


class Ui(Section, frozen=True):
    activity: ActivityPage = Field(default=ActivityPage(), description="the page of past requests")


class UpstreamSection(Section, frozen=True):
    ignore_paths: tuple[str, ...] = Field(
        default=(r".*\.(js|json|css|png|gif|jpg|jpeg|ico|txt)$",),
        description="regular expressions of paths below /upstream/MODEL that start no model",
    )


class OnStartup(Section, frozen=True):
    preload: tuple[str, ...] = Field(default=(), description="models loaded after start, one after the other")


class Hooks(Section, frozen=True):
    on_startup: Annotated[OnStartup, Key("on_startup")] = Field(
        default=OnStartup(), description="what happens after start"
    )


LogTimeFormat = Literal[
    "", "ansic", "unixdate", "rubydate", "rfc822", "rfc822z", "rfc850", "rfc1123", "rfc1123z", "rfc3339", "rfc3339nano",
    "kitchen", "stamp", "stampmilli", "stampmicro", "stampnano",
]  # fmt: skip


class Config(Section, frozen=True):
    """The whole configuration, resolved."""

    models: Mapping[str, ModelConfig] = Field(default={}, description="model id to model, in byte order of the ids")
    groups: Mapping[str, Group] = Field(default={}, description="groups by name; ungrouped models form `(default)`")
    matrix: Matrix | None = Field(default=None, description="which models may run together; in place of groups")
    routing: Routing = Field(default=Routing(), description="the newer home of groups and matrix, and of priorities")
    selectors: Mapping[str, Selector] = Field(default={}, description="names that stand for one of several models")
    profiles: Mapping[str, Profile] = Field(default={}, description="sets of names that can be switched")
    peers: Mapping[str, Peer] = Field(default={}, description="other servers that have models")
    macros: Mapping[str, Any] = Field(default={}, description="global macros: text, numbers or booleans")
    health_check_timeout: int = Field(default=120, description="seconds a model may take to become ready; at least 15")
    global_ttl: Annotated[int, Key("globalTTL")] = Field(
        default=0, description="default of a model's ttl; 0 never unloads"
    )
    unload_timeout: int = Field(default=10, description="seconds between stop signal and SIGKILL")
    start_port: int = Field(default=5800, description="first port given to ${PORT}")
    log_level: Annotated[Literal["debug", "info", "warn", "error"], Lenient()] = Field(
        default="info", description="least severe line logged"
    )
    log_time_format: Annotated[LogTimeFormat, Lenient()] = Field(
        default="", description="time stamp before each line of the program's own log; empty: none"
    )
    log_to_stdout: Literal["proxy", "upstream", "both", "none"] = Field(
        default="proxy", description="what goes to stdout"
    )
    api_keys: tuple[str, ...] = Field(
        default=(), repr=False, description="keys that clients must present; empty: no authentication"
    )
    include_aliases_in_list: bool = Field(default=False, description="aliases become rows of /v1/models")
    send_loading_state: bool = Field(default=False, description="default of the model key")
    hooks: Hooks = Field(default=Hooks(), description="what happens at certain moments")
    metrics_max_in_memory: int = Field(default=1000, description="activity rows kept in memory")
    capture_buffer: int = Field(default=5, description="MiB kept for captures; 0 turns them off")
    performance: Performance = Field(default=Performance(), description="how the machine's load is watched")
    store: Store | None = Field(default=None, description="where the activity is kept")
    ui: Ui = Field(default=Ui(), description="settings of the web interface")
    upstream: UpstreamSection = Field(default=UpstreamSection(), description="settings of /upstream")
    overtake_limit: int = Field(default=30, description="seconds a queued swap is overtaken by newcomers at most")
    on_stop: Literal["auto", "keep", "stop"] = Field(
        default="auto", description="what becomes of models when the daemon ends; auto: a restart keeps them"
    )
    drain_timeout: int = Field(default=30, description="seconds requests may take to end when the daemon does")
    systemd: Annotated[Mapping[str, tuple[str, ...]], UnitSettings()] = Field(
        default={}, description="unit settings of every model that does not set them itself"
    )
    manager: Annotated[Literal["auto", "system", "user", "private"], Key("systemd.manager")] = Field(
        default="auto", description="which systemd runs the models"
    )

    _by_alias: dict[str, ModelConfig] = PrivateAttr(default_factory=dict)
    _by_peer: dict[str, PeerModel] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        # Filled here and not on first use, so that equal configurations stay equal.
        self._by_alias.update((alias, model) for model in self.models.values() for alias in model.listed_aliases)

        peer_models = [PeerModel(peer, model) for peer in self.peers.values() for model in dict.fromkeys(peer.models)]
        peers_of = Counter(each.model for each in peer_models)
        self._by_peer.update((each.model, each) for each in peer_models if peers_of[each.model] == 1)
        self._by_peer.update((each.id, each) for each in peer_models)

    def resolve(self, name: str) -> ModelConfig | None:
        """Return the model of ours that an id or alias means, by exact, case-sensitive comparison; ids win."""
        return self.models.get(name) or self._by_alias.get(name)

    def find(self, name: str) -> ModelConfig | PeerModel | None:
        """Return what a name means, ours before a peer's, which is `<peer>/<model>`, or bare if one peer has it."""
        return self.resolve(name) or self._by_peer.get(name)

    @property
    def peer_models(self) -> list[PeerModel]:
        """Every model of every peer, in byte order of their ids."""
        return sorted((found for name, found in self._by_peer.items() if name == found.id), key=lambda each: each.id)

    @property
    def priority(self) -> Mapping[str, int]:
        """By model id: who comes first in the queue."""
        return self.routing.scheduler.settings.fifo.priority


# Keys of llama-swap that are accepted and never change anything.
WITHOUT_EFFECT: Mapping[type[Section], frozenset[str]] = {
    Config: frozenset({"logRequests"}),
    ModelConfig: frozenset({"healthCheckTimeout"}),
}
