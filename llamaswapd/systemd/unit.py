"""What systemd is told about a model: its unit's name and its settings.

Pure. A unit is one list of settings in unit-file spelling; what goes over the bus and what `llamaswapd units` prints
are both made from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamaswapd.config.commandline import split
from llamaswapd.config.fingerprint import digest
from llamaswapd.config.schema import ModelConfig
from llamaswapd.config.settings import SECTIONS, minimum_version, properties
from llamaswapd.config.unit_kinds import Property
from llamaswapd.config.unit_values import is_assignment
from llamaswapd.config.unit_words import literals, quote
from llamaswapd.errors import UsageError
from llamaswapd.systemd import container, sandbox

Settings = Mapping[str, tuple[str, ...]]

UNLIMITED_GRACE_S = 10.0  # of a unit without a time limit of its own
_NO_LIMIT_USEC = 2**64 - 1  # USEC_INFINITY

READS_PREFIXES_AGAIN = 257  # version of systemd, see `_start_command`

# Names

# systemd.unit(5) allows 255, but PrivateTmp= makes a folder of it, with 56 more: systemd-private-BOOT_ID-NAME-XXXXXX.
_NAME_BYTES = 199  # suffix included
_CUT = r"\x2d"  # an escaped dash: `_escape` keeps dashes, so that only shortened names hold one


def check_instance(name: str) -> None:
    """Raise UsageError unless the name can stand in unit names without looking like a model's."""
    if not re.fullmatch(r"[a-z0-9_]{1,32}", name) or name in ("model", "models"):
        raise UsageError(
            f'instance "{name}" cannot be part of unit names; use 1 to 32 of a-z, 0-9 and _, not "model" or "models"'
        )


def unit_name(model_id: str, instance: str = "") -> str:
    """Return the name of a model's unit; distinct for distinct ids, legible wherever the id is."""
    name = _prefix(instance) + "model-" + _escape(model_id) + ".service"
    if len(name) <= _NAME_BYTES:
        return name
    tail = _CUT + digest(model_id) + ".service"
    whole_escapes = re.sub(r"\\(x[0-9a-f]?)?$", "", name[: _NAME_BYTES - len(tail)])
    return whole_escapes + tail


def model_id_of(name: str, instance: str = "") -> str | None:
    """Return the model id that a unit name of this instance stands for; None for a shortened name or another's."""
    start, end = _prefix(instance) + "model-", ".service"
    if not name.startswith(start) or not name.endswith(end):
        return None
    escaped = name[len(start) : -len(end)]
    try:
        model_id = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), escaped.encode()).decode()
    except UnicodeDecodeError:
        return None
    return model_id if unit_name(model_id, instance) == name else None


def identifier(model_id: str, instance: str = "") -> str:
    """Return what a model's lines have in the journal as SYSLOG_IDENTIFIER; two instances may have the same model."""
    return f"{_printable(model_id)}@{instance}" if instance else _printable(model_id)


def slice_name(instance: str = "") -> str:
    """Return the slice of all models; by its dashes a child of the instance's own."""
    return _prefix(instance) + "models.slice"


def pattern(instance: str = "") -> str:
    """Return the glob that matches the units of this instance and of no other."""
    return _prefix(instance) + "model-*.service"


def _prefix(instance: str) -> str:
    return f"llamaswapd-{instance}-" if instance else "llamaswapd-"


def _escape(model_id: str) -> str:
    """Escape as systemd-escape(1) does, but keep dashes and never make one of a slash: ids are no paths."""
    kept = re.sub(rb"[^A-Za-z0-9:_.-]|^\.", lambda m: b"\\x%02x" % m[0][0], model_id.encode())
    return kept.decode()


def object_path(unit: str) -> str:
    """Return the D-Bus object of a unit: bytes other than letters and digits as `_nn`, a leading digit, too."""
    escaped = re.sub(rb"[^A-Za-z0-9]|^[0-9]", lambda m: b"_%02x" % m[0][0], unit.encode())
    return f"/org/freedesktop/systemd1/unit/{escaped.decode()}"


# What a unit consists of


@dataclass(frozen=True)
class Host:
    """What a model's unit takes from where it runs."""

    version: int  # of the systemd that runs it
    directory: str  # working directory, absolute
    instance: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)  # inherited; other users can read it over D-Bus
    find: Callable[[str], str] = str  # program as written to absolute path; unchanged when there is none
    defaults: Settings = field(default_factory=dict)  # between ours and the model's own, see `sandbox`
    # Where files with environments are, for systemd to read and nobody else; "": they are in the units.
    environment_file: str = ""


@dataclass(frozen=True)
class UnitSpec:
    """A unit to be."""

    name: str
    settings: Settings
    left_out: tuple[str, ...]  # settings of the model that this systemd does not know yet
    environment_file: str = ""  # what is to be in the file that its EnvironmentFile= names first

    @property
    def properties(self) -> list[Property]:
        """What StartTransientUnit takes."""
        return [entry for name, values in self.settings.items() for entry in properties(name, values)]


def build(model: ModelConfig, host: Host) -> UnitSpec:
    """Return the unit of a model: what the daemon needs, the host's defaults, what the model's `systemd` block says."""
    own = {name: values for name, values in model.systemd.items() if minimum_version(name, values) <= host.version}
    left_out = tuple(name for name in model.systemd if name not in own)
    base, locked = _base(model, host), sandbox.for_model(host.defaults, model.id, _program(model), own)
    settings = {**base, **locked, **own}
    for name in own.keys() & locked.keys() & sandbox.LISTS:
        settings[name] = (*locked[name], *own[name])
    if "LogExtraFields" in own:  # ours last: an empty assignment must not take the identity away
        settings["LogExtraFields"] = (*own["LogExtraFields"], *base["LogExtraFields"])
    for name in own.keys() & base.keys() & {"ExecStartPre", "ExecStopPost"}:  # ours see to a container's end
        settings[name] = (*own[name], *base[name])
    inherited, env = _inherited(host.environment), _own_environment(model)
    settings["Environment"] = _merged(
        (*map(quote, inherited), *locked.get("Environment", ()), *map(quote, env), *own.get("Environment", ()))
    )
    name, text = unit_name(model.id, host.instance), ""
    if host.environment_file and settings["Environment"]:
        text = _environment_file(settings.pop("Environment"))
        # systemd.exec(5): of two files with one variable the later wins. The name is a pattern, glob(7).
        ours = f"{host.environment_file}/{name}".replace("\\", "\\\\").replace("%", "%%")
        settings["EnvironmentFile"] = (ours, *_after_reset(own.get("EnvironmentFile", ())))
    return UnitSpec(name, {name: values for name, values in settings.items() if values}, left_out, text)


def _program(model: ModelConfig) -> str:
    """Return the name of the program that the unit runs."""
    command = container.words(model, unit_name(model.id)) or split(model.cmd)
    return os.path.basename("".join(command[:1]))


def _after_reset(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the assignments behind the last empty one."""
    empty = [i + 1 for i, text in enumerate(values) if not text.strip()]
    return values[max(empty, default=0) :]


def _base(model: ModelConfig, host: Host) -> dict[str, tuple[str, ...]]:
    label, name = _printable(model.id), unit_name(model.id, host.instance)
    settings = {
        "Description": (f"llama-swap model {label}".replace("%", "%%"),),
        # The name is free again as soon as the unit has ended, however it ended.
        "CollectMode": ("inactive-or-failed",),
        # The daemon decides how often a model may be started.
        "StartLimitIntervalSec": ("0",),
        # systemd.service(5): "exec" reports a program that cannot be executed, "simple" would call it started.
        "Type": ("exec",),
        # READY=1 and STATUS= of any of its processes are signs of life for the readiness probe.
        "NotifyAccess": ("all",),
        "ExecStart": (_start_command(container.words(model, name) or split(model.cmd), host),),
        "ExecStop": _stop_commands(model, host),
        "Restart": ("no",),
        "TimeoutStartSec": (str(model.health_check_timeout),),
        "TimeoutStopSec": (str(model.unload_timeout),),
        # A server that lost one of its processes is of no use; "kill" takes the others at once, without a stop phase.
        "OOMPolicy": ("kill",),
        "KillMode": ("control-group",),
        "WorkingDirectory": (host.directory.replace("%", "%%"),),
        "StandardInput": ("null",),
        "SyslogIdentifier": (identifier(model.id, host.instance).replace("%", "%%"),),
        "LogExtraFields": tuple(quote(f"{name}={value}") for name, value in _identity(model, host.instance)),
        # 0 would mean journald's default of some 10000 lines in 30 s, not "unlimited".
        "LogRateLimitIntervalSec": ("1s",),
        "LogRateLimitBurst": ("1000000",),
        "Slice": (slice_name(host.instance),),
    }
    if settings["ExecStop"]:
        # When the time for ExecStop= is over: SIGKILL as in llama-swap, not SIGTERM and the same time once more.
        settings["TimeoutStopFailureMode"] = ("kill",)
    if model.container is not None:
        settings |= container.settings(model, name, host.find)
    else:
        settings |= container.settings_of_command(model, split(model.cmd), host.find)
    return {name: values for name, values in settings.items() if values}


def _start_command(argv: Sequence[str], host: Host) -> str:
    """Return the command line, in which systemd must expand no `$`, as there is no shell in llama-swap.

    The prefix `:` keeps it from that, but a unit that has it is one that systemd 252 cannot read again at a
    daemon-reload (seen; 257 can). It would run on, marked `bad-setting`. So `$` is doubled there.
    """
    if not argv:
        return ""
    command = " ".join(quote(word) for word in [host.find(argv[0]), *argv[1:]])
    if "$" not in command:
        return command
    return f":{command}" if host.version >= READS_PREFIXES_AGAIN else command.replace("$", "$$")


def _stop_commands(model: ModelConfig, host: Host) -> tuple[str, ...]:
    """Return `cmdStop` and a wait for the end of the main process; nothing, hence SIGTERM, without a usable `cmdStop`.

    systemd sends SIGTERM as soon as the last ExecStop= has returned. llama-swap sends none and leaves the model its
    whole grace time, which a `cmdStop` that only asks for the end (`docker stop` in the background, an HTTP call)
    relies on. So a second command lasts as long as the main process does. KillSignal=SIGCONT would also take the sting
    out of the signal, but children that outlive the main process would then hold the unit until the timeout.
    """
    argv = split(model.cmd_stop)
    if not argv:
        return ()
    stop = " ".join(_stop_word(word) for word in [host.find(argv[0]), *argv[1:]])
    return f"-{stop}", f"-{quote(host.find('tail'))} --pid=${{MAINPID}} -s 0.02 -f /dev/null"


def _stop_word(word: str) -> str:
    return quote(word.replace("$", "$$").replace("$${PID}", "${MAINPID}"))


def _inherited(environment: Mapping[str, str]) -> list[str]:
    """Return what of the daemon's environment a model may have, sorted.

    Not what systemd sets for each unit anew: the daemon's own would win over it.
    """
    entries = (f"{name}={value}" for name, value in sorted(environment.items()) if name not in PER_UNIT)
    return [entry for entry in entries if is_assignment(entry)]


def _own_environment(model: ModelConfig) -> list[str]:
    return [entry for entry in model.env if is_assignment(entry)]


def unusable_environment(model: ModelConfig) -> list[str]:
    """Return the names of the model's `env` entries that systemd takes into no environment; they are left out.

    One without a name is `***`: it may be a secret.
    """
    return [entry.partition("=")[0] if "=" in entry else "***" for entry in model.env if not is_assignment(entry)]


def oddities(spec: UnitSpec, model: ModelConfig, host: Host) -> list[str]:
    """Return what of the model's settings its unit does not have, in words for the log."""
    unknown = [f"systemd {host.version} does not know {name}=, left out" for name in spec.left_out]
    return unknown + [
        f"env: {name} is not NAME=value with a name that systemd takes, left out"
        for name in unusable_environment(model)
    ]


def _merged(assignments: Iterable[str]) -> tuple[str, ...]:
    """Return `Environment=` values with the last assignment of each name: on the bus, two of one name are refused."""
    entries: dict[str, str] = {}
    for text in assignments:
        if not text.strip():  # systemd.exec(5): an empty one forgets all before it
            entries.clear()
        entries.update((entry.partition("=")[0], entry) for entry in literals(text))
    return tuple(quote(entry) for entry in entries.values())


def _environment_file(assignments: Iterable[str]) -> str:
    """Return merged `Environment=` values as the text of a file; systemd.exec(5), EnvironmentFile=."""
    entries = (entry.partition("=") for text in assignments for entry in literals(text))
    return "".join(f'{name}="{_NEEDS_BACKSLASH.sub(_BACKSLASHED, value)}"\n' for name, _, value in entries)


_NEEDS_BACKSLASH, _BACKSLASHED = re.compile(r'[\\"`$]'), r"\\\g<0>"

# systemd.exec(5), "Environment Variables Set or Propagated by the Service Manager", those that belong to one unit.
PER_UNIT = frozenset(
    """
    CACHE_DIRECTORY CONFIGURATION_DIRECTORY CREDENTIALS_DIRECTORY EXIT_CODE EXIT_STATUS FDSTORE INVOCATION_ID
    JOURNAL_STREAM LISTEN_FDNAMES LISTEN_FDS LISTEN_PID LISTEN_PIDFDID LOGS_DIRECTORY LOG_NAMESPACE MAINPID MANAGERPID
    MEMORY_PRESSURE_WATCH MEMORY_PRESSURE_WRITE NOTIFY_SOCKET RUNTIME_DIRECTORY SERVICE_RESULT STATE_DIRECTORY
    SYSTEMD_EXEC_PID TRIGGER_PATH TRIGGER_UNIT WATCHDOG_PID WATCHDOG_USEC
    """.split()  # noqa: SIM905 - a list that long reads better as text
)


def _identity(model: ModelConfig, instance: str) -> list[tuple[str, str]]:
    """Return the journal fields that say whose lines these are, by which a later daemon recognises the unit, too.

    `ttl` (seconds) is there for who has to stop the unit when no daemon comes back. It is no part of the fingerprint,
    and systemd changes no log settings of a unit that runs: after a reload with another `ttl` the old one stays.
    """
    fields = {
        "LLAMASWAP_MODEL": model.id,
        "LLAMASWAP_INSTANCE": instance,
        "LLAMASWAP_FINGERPRINT": model.fingerprint,
    }
    if model.port is not None:
        fields["LLAMASWAP_PORT"] = str(model.port)
    if model.ttl > 0:
        fields["LLAMASWAP_TTL"] = str(model.ttl)
    return list(fields.items())


def identity(properties: Mapping[str, Any]) -> dict[str, str]:
    """Return the journal fields in what systemd says of a unit, as text: what `_identity` has put there, or others.

    Of two with one name the last, which is ours.
    """
    entries = (bytes(entry).decode(errors="replace") for entry in properties.get("LogExtraFields", ()))
    return dict(entry.partition("=")[::2] for entry in entries)


def model_of(name: str, fields: Mapping[str, str], instance: str = "") -> str:
    """Return the id of the model that a unit runs, "" if nobody knows; `fields`: its `identity`.

    Its name says it, but for a shortened one. systemd writes the fields without quotes, and what stands behind a blank
    is forgotten when it reads its own files anew (seen with 252 and 257).
    """
    return model_id_of(name, instance) or fields.get("LLAMASWAP_MODEL", "")


def grace_s(properties: Mapping[str, Any]) -> float:
    """Return the seconds that a unit may take to stop, by what systemd says of it."""
    limit_usec = properties["TimeoutStopUSec"]
    return UNLIMITED_GRACE_S if limit_usec == _NO_LIMIT_USEC else float(limit_usec / 1e6)


def _printable(model_id: str) -> str:
    """Return the id with anything that could break a line of a unit file or of the journal as `_`."""
    return "".join(char if char.isprintable() and char != "\\" else "_" for char in model_id)


# In print


def to_unit_file(spec: UnitSpec) -> str:
    """Return the unit as it would be written into a file under /etc/systemd/system."""
    return "\n".join([f"# {spec.name}", *(_section(title, spec.settings) for title in SECTIONS)])


def _section(title: str, settings: Settings) -> str:
    known = [setting.name for setting in SECTIONS[title] if setting.name in settings]
    return "\n".join([f"[{title}]", *(f"{name}={value}" for name in known for value in settings[name]), ""])
