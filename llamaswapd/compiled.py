"""The modules that every request goes through can be compiled: a third of the instructions in user space.

`setup.py` has mypyc make extension modules of them where it can, which are put beside the sources; Python prefers an
extension module to a source of the same name. So that nobody changes a source and wonders that nothing
happens, the build notes what it has read, and the sources are used if they say something else by now. They are used,
too, by a Python that the extension modules are not for, and if `LLAMASWAPD_COMPILED=0`.

All of them or none: compiled modules call each other without asking what their names mean by now.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

# What is done for each request, token or connection, and the classes that it derives from. ARCHITECTURE.md says what a
# module must keep to for that.
MODULES = (
    "activity.glance", "activity.plain", "activity.record", "core.slots", "engine.at_once", "http.awaited",
    "http.connection", "http.express", "http.heads", "http.kept", "http.link", "http.recording", "http.relay",
    "http.route", "http.traffic", "http.upstream", "http.wire", "observe.access", "observe.batch",
    "observe.inflight",
)  # fmt: skip

PACKAGE = Path(__file__).parent
NOTE = "compiled.from"  # beside this file: the fingerprint of what has been compiled
LIBRARY = "__mypyc"  # the end of the name of what holds all code; in the package's folder, so that it is always found
SWITCH = "LLAMASWAPD_COMPILED"  # 0 has the sources be used


def source(module: str) -> Path:
    """Return the path of a module's source, relative to the package's folder."""
    return Path(*module.split(".")).with_suffix(".py")


def fingerprint(package: Path) -> str:
    """Return what tells one state of the sources in a package's folder from another."""
    return "".join(f"{zlib.crc32((package / source(module)).read_bytes()):08x}" for module in MODULES)


def state() -> str:
    """Return how the modules run, in words for people: compiled or not, and why not."""
    if not (PACKAGE / NOTE).exists():
        return "not compiled"
    if not _are_there():
        return "not compiled for this version of Python"
    if os.environ.get(SWITCH) == "0":
        return f"not compiled, as {SWITCH}=0 has it"
    return "compiled" if is_current() else "not compiled since a source was changed"


def is_current() -> bool:
    """Return whether there are extension modules for this Python, made of the sources as they are now."""
    try:
        return _are_there() and (PACKAGE / NOTE).read_text() == fingerprint(PACKAGE)
    except OSError:
        return False


def prepare() -> None:
    """Have Python import the sources, unless what has been compiled is the same. Before any of them is imported."""
    if not _are_there():
        return
    if os.environ.get(SWITCH) == "0" or not is_current():
        sys.meta_path.insert(0, _Sources())
    else:
        sys.meta_path.append(_Library())


def _are_there() -> bool:
    """Return whether there are extension modules that Python would prefer."""
    first = PACKAGE / source(MODULES[0])
    return any(first.with_suffix(suffix).exists() for suffix in EXTENSION_SUFFIXES)


class _Sources:
    """Finds the sources, where there are extension modules, too."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        module = name.removeprefix(f"{__package__}.")
        return spec_from_file_location(name, PACKAGE / source(module)) if module in MODULES else None


class _Library:
    """Finds the library that the extension modules import by a name of its own."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.endswith(LIBRARY):
            return None
        files = (PACKAGE / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
        file = next((file for file in files if file.exists()), None)
        return spec_from_file_location(name, file) if file is not None else None
