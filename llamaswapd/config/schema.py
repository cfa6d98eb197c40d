"""Every key of the configuration: type, default, unit, one line each.

The fields read like the manual. Their YAML spelling is the camel-cased field name unless a `Key` says otherwise, so the
loader, the schema, the example and the manual all come from this file. Models are frozen: what the loader returns does
not change. Nothing here reads a file.
"""

from __future__ import annotations

import re
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
class UnitSettings:
    """Settings as in unit files: each a text or a list of texts, as written."""


class Section(BaseModel, frozen=True, extra="forbid"):
    """Base of every mapping in the file. Works alike on pydantic 1.10 (Debian 12) and 2."""

    def having(self, **changes: Any) -> Self:
        """Return the same with some fields changed."""
        return type(self)(**{**dict(self), **changes})


class Filters(Section, frozen=True):
    """What is removed from and set in JSON request bodies."""

    strip_params: Annotated[tuple[str, ...], CommaSeparated()] = Field(
        default=(), description="members removed; dotted paths; never `model`"
    )
    set_params: Mapping[str, Any] = Field(default={}, description="members set or replaced; dotted path to any value")
    set_params_by_id: Annotated[Mapping[str, Mapping[str, Any]], Key("setParamsByID")] = Field(
        default={}, description="the same for the name the client used; overrides setParams; each key becomes an alias"
    )


class ModelConfig(Section, frozen=True):
    """One model, after macros, defaults and globals have been applied."""

    id: Annotated[str, DERIVED] = Field(default="", description="the key under `models`")
    cmd: str = Field(default="", description="command line, split without a shell")
    cmd_stop: str = Field(default="", description="command run to stop the model, instead of SIGTERM")
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
    env: tuple[str, ...] = Field(default=(), description="NAME=value entries added to the environment")
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
    macros: Mapping[str, Any] = Field(default={}, description="macros of this model: text, numbers or booleans")
    systemd: Annotated[Mapping[str, tuple[str, ...]], UnitSettings()] = Field(
        default={},
        description="unit settings spelled as in unit files, each a list of its assignments; defaults merged in",
    )
    port: Annotated[int | None, DERIVED] = Field(default=None, description="allocated port, when cmd uses ${PORT}")

    @property
    def slots(self) -> int:
        """How many requests may be admitted at once."""
        return self.concurrency_limit if self.concurrency_limit > 0 else 10

    def names_port(self, port: int) -> bool:
        """Whether command or environment hold this number.

        If not, a server on that port is somebody else's, and meant to be: `cmd` may be a tunnel or a mere `sleep`.
        """
        number = re.compile(rf"(?<![0-9]){port}(?![0-9])")
        return any(number.search(text) for text in (self.cmd, *self.env))

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
        default=(), description="keys that clients must present; empty: no authentication"
    )
    include_aliases_in_list: bool = Field(default=False, description="aliases become rows of /v1/models")
    send_loading_state: bool = Field(default=False, description="default of the model key")
    hooks: Hooks = Field(default=Hooks(), description="what happens at certain moments")
    metrics_max_in_memory: int = Field(default=1000, description="activity rows kept in memory")
    capture_buffer: int = Field(default=5, description="MiB kept for captures")
    overtake_limit: int = Field(default=30, description="seconds a queued swap is overtaken by newcomers at most")
    systemd: Annotated[Mapping[str, tuple[str, ...]], UnitSettings()] = Field(
        default={}, description="unit settings of every model that does not set them itself"
    )
    manager: Annotated[Literal["auto", "system", "user", "private"], Key("systemd.manager")] = Field(
        default="auto", description="which systemd runs the models"
    )

    _by_alias: dict[str, ModelConfig] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        # Filled here and not on first use, so that equal configurations stay equal.
        self._by_alias.update((alias, model) for model in self.models.values() for alias in model.listed_aliases)

    def resolve(self, name: str) -> ModelConfig | None:
        """Return the model that an id or alias means, by exact, case-sensitive comparison; ids win."""
        return self.models.get(name) or self._by_alias.get(name)


# Keys of llama-swap that are accepted but change nothing yet, and those that never will.
NOT_YET_HONOURED: Mapping[type[Section], frozenset[str]] = {
    Config: frozenset(
        {
            "matrix", "routing", "selectors", "profiles", "peers", "performance", "store", "ui", "upstream",
            "metricsMaxInMemory", "captureBuffer",
        }
    ),
    ModelConfig: frozenset({"capabilities", "timeouts", "compat"}),
}  # fmt: skip
WITHOUT_EFFECT: Mapping[type[Section], frozenset[str]] = {
    Config: frozenset({"logRequests"}),
    ModelConfig: frozenset({"healthCheckTimeout"}),
}
