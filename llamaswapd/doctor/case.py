"""What is looked at: the configuration, and each model with the unit that it would get here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from llamaswapd.config.schema import ModelConfig
from llamaswapd.config.settings import properties
from llamaswapd.config.unit_words import BadValue, literals
from llamaswapd.doctor.access import Hidden, Identity
from llamaswapd.doctor.machine import Machine
from llamaswapd.systemd.listeners import CONTAINER_CLIENTS
from llamaswapd.systemd.program import OWN_ROOT
from llamaswapd.systemd.sandbox import MODEL_GROUP
from llamaswapd.systemd.unit import Settings, UnitSpec

Scope = Literal["launcher", "system", "user", "private"]

_CAP_DAC_OVERRIDE = 1 << 1  # linux/capability.h


@dataclass(frozen=True)
class Case:
    """One model as its unit would be."""

    model: ModelConfig
    spec: UnitSpec
    words: Sequence[str]  # what the unit runs, the program's path absolute where there is one
    who: Identity | None  # None: its user does not exist

    @property
    def id(self) -> str:
        return self.model.id

    @property
    def client(self) -> str:
        """The container engine's client that the unit runs; "" for any other program."""
        name = self.words[0].rpartition("/")[2] if self.words else ""
        return name if name in CONTAINER_CLIENTS else ""

    @property
    def has_own_root(self) -> bool:
        return bool(OWN_ROOT & self.spec.settings.keys())

    def last(self, name: str) -> str:
        """Return the value of a single setting, "" if systemd's default holds."""
        return self.spec.settings.get(name, ("",))[-1].strip()

    def is_on(self, name: str) -> bool:
        return self.last(name).lower() in ("1", "yes", "y", "true", "t", "on")

    def words_of(self, name: str) -> list[str]:
        """Return the words of a list setting that count."""
        return _words(self.spec.settings.get(name, ()))

    @property
    def made(self) -> list[str]:
        """The folders that systemd makes for the unit, or fills, when it starts."""
        places = (("CacheDirectory", "/var/cache"), ("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run"),
                  ("LogsDirectory", "/var/log"))  # fmt: skip
        return ["/run/credentials", *(f"{place}/{word}" for name, place in places for word in self.words_of(name))]

    @property
    def hidden(self) -> list[Hidden]:
        """What the unit's mounts keep from the model; systemd.exec(5)."""
        found = []
        home = self.last("ProtectHome")
        if home in ("yes", "tmpfs", "true", "on", "1"):
            why, remedy = f"is hidden by ProtectHome={home}", "set ProtectHome: read-only in the model's systemd block"
            found += [Hidden(folder, why, remedy) for folder in ("/home", "/root", "/run/user")]
        if self.is_on("PrivateTmp") or self.last("PrivateTmp") == "disconnected" or self.is_on("DynamicUser"):
            remedy = "put it elsewhere, for example into /srv/models"
            found += [Hidden(folder, "is hidden by PrivateTmp=", remedy) for folder in ("/tmp", "/var/tmp")]
        for path in self.words_of("InaccessiblePaths"):
            remedy = "put it elsewhere, for example into /srv/models"
            found.append(Hidden(path.lstrip("-+"), "is hidden by InaccessiblePaths=", remedy))
        if self.is_on("PrivateDevices"):
            found.append(Hidden("/dev", "is hidden by PrivateDevices=", "set PrivateDevices: no"))
        return found

    def as_seen_outside(self, path: str) -> str:
        """Return where a path of the unit's is in the machine: BindPaths= may put it elsewhere."""
        for binding in (*self.words_of("BindPaths"), *self.words_of("BindReadOnlyPaths")):
            source, _, rest = binding.lstrip("-").partition(":")
            target = rest.partition(":")[0] or source
            if path == target or path.startswith(f"{target}/"):
                return source + path[len(target) :]
        return path

    def is_bound(self, path: str) -> bool:
        return self.as_seen_outside(path) != path or any(
            path.startswith(binding.lstrip("-").partition(":")[0])
            for binding in (*self.words_of("BindPaths"), *self.words_of("BindReadOnlyPaths"))
        )


@dataclass(frozen=True)
class Situation:
    """What all checks get."""

    scope: Scope
    files: Sequence[str] = ()  # of the configuration, absolute
    cases: Sequence[Case] = field(default_factory=tuple)
    runs_as: str = ""  # name of the user of the models under a user's or a private manager

    @property
    def is_packaged(self) -> bool:
        return self.scope == "launcher"


def case(machine: Machine, model: ModelConfig, spec: UnitSpec, scope: Scope) -> Case:
    command = "".join(spec.settings.get("ExecStart", ()))
    words = _words([command.removeprefix(":")])
    if not command.startswith(":"):
        words = [word.replace("$$", "$") for word in words]
    return Case(model, spec, words, identity(machine, spec, scope))


def identity(machine: Machine, spec: UnitSpec, scope: Scope) -> Identity | None:
    """Return whom a unit runs as; None if that user does not exist. Groups that do not exist are left out."""
    if scope in ("user", "private"):
        user = machine.user(str(machine.uid))
        gids = user.gids if user else frozenset[int]()
        return Identity(user.name if user else str(machine.uid), machine.uid, gids, overrides=machine.uid == 0)
    settings = spec.settings
    named = settings.get("User", ("",))[-1].strip()
    is_dynamic = settings.get("DynamicUser", ("no",))[-1].strip() in ("yes", "true", "on", "1")
    further = [*_words(settings.get("SupplementaryGroups", ())), settings.get("Group", ("",))[-1].strip()]
    gids = frozenset(gid for name in further if name and (gid := machine.group(name)) is not None)
    model_group = MODEL_GROUP if MODEL_GROUP in further and machine.group(MODEL_GROUP) is not None else ""
    if is_dynamic and (not named or machine.user(named) is None):
        return Identity("", None, gids, model_group=model_group)
    user = machine.user(named or "root")
    if user is None:
        return None
    overrides = user.uid == 0 and bool(_bounding_set(settings) & _CAP_DAC_OVERRIDE)
    return Identity(user.name, user.uid, user.gids | gids, overrides, model_group)


def _words(values: Sequence[str]) -> list[str]:
    empty = max((i + 1 for i, text in enumerate(values) if not text.strip()), default=0)
    try:
        return [word for text in values[empty:] for word in literals(text)]
    except BadValue:
        return []


def _bounding_set(settings: Settings) -> int:
    values = settings.get("CapabilityBoundingSet")
    if values is None:
        return ~0
    [(_, _, bits)] = properties("CapabilityBoundingSet", values)
    assert isinstance(bits, int)
    return bits
