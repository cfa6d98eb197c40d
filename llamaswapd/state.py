"""What the daemon remembers across its own end: one small file of JSON. Never trusted over what systemd says."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llamaswapd.errors import Error

log = logging.getLogger(__name__)

VERSION = 1
MAX_BYTES = 16 << 20  # of what is taken for ours


@dataclass(frozen=True)
class Remembered:
    """One run of a model. Times are seconds of CLOCK_MONOTONIC, 0.0 for what has not happened."""

    invocation: str  # of its unit, 32 hexadecimal digits: what is said holds for this start of it and no other
    ready_at: float
    last_used: float


@dataclass(frozen=True)
class State:
    models: Mapping[str, Remembered] = field(default_factory=dict)  # by model id
    loads_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # model id → how long its loads took
    profile: str | None = None  # the active one


class _Rubbish(Error):
    """The file is not one of ours."""


class StateFile:
    """One file in a directory that belongs to us. Its methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new = path.with_name(path.name + ".new")

    def read(self) -> State:
        """Return what was written last; nothing if there is no file, or one that cannot be used, which is logged."""
        try:
            return _parsed(self._content())
        except FileNotFoundError:
            return State()
        except (OSError, _Rubbish) as error:
            log.warning("%s is not used, as if there were none: %s", self.path, error)
            return State()

    def write(self, state: State) -> None:
        """Replace the file, so that whatever happens either the old or the new state is there; raises OSError."""
        text = json.dumps({"version": VERSION, **asdict(state)}, separators=(",", ":"))
        try:
            self._new.unlink(missing_ok=True)  # of somebody who was killed just here
            with open(os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # or the name could reach the disk before what it names
            self._new.replace(self.path)
        except BaseException:
            with suppress(OSError):
                self._new.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Forget everything; raises OSError."""
        self.path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        # A pipe in its place would keep us waiting.
        with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _Rubbish(f"it is longer than {MAX_BYTES} bytes")
        return content


def _parsed(content: bytes) -> State:
    try:
        whole = _table(json.loads(content), "it")
    except (ValueError, RecursionError) as error:  # of bytes that are no text, or text that is no JSON
        raise _Rubbish(str(error)) from error
    if (version := whole.get("version")) != VERSION:
        raise _Rubbish(f"its version is {version!r:.50}, not {VERSION}")
    profile = whole.get("profile")
    if not isinstance(profile, str | None):
        raise _Rubbish(f"profile is {profile!r:.50}")
    return State(
        models={id_: _remembered(entry) for id_, entry in _table(whole.get("models"), "models").items()},
        loads_s={id_: _seconds(*_list(loads)) for id_, loads in _table(whole.get("loads_s"), "loads_s").items()},
        profile=profile,
    )


def _remembered(entry: object) -> Remembered:
    fields = _table(entry, "a model")
    invocation = fields.get("invocation")
    if not isinstance(invocation, str) or not re.fullmatch(r"[0-9a-f]{32}", invocation):
        raise _Rubbish(f"invocation is {invocation!r:.50}, not 32 hexadecimal digits")
    return Remembered(invocation, *_seconds(fields.get("ready_at"), fields.get("last_used")))


def _table(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _Rubbish(f"{name} is no object but {value!r:.50}")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise _Rubbish(f"the loads of a model are no array but {value!r:.50}")
    return value


def _seconds(*values: object) -> tuple[float, ...]:
    return tuple(map(_second, values))


def _second(value: object) -> float:
    # JSON's numbers have no bounds, and to Python true is one.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise _Rubbish(f"{value!r:.50} is no number of seconds")
    return float(value)
