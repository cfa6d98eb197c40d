"""The arrows of ARCHITECTURE.md point one way, and each outside library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llamaswapd"

# What each layer may import, itself and the root package's version aside. A layer is the first part of the module's
# name; ARCHITECTURE.md has the same table with the reasons.
MAY_USE = {
    "errors": set[str](),
    "config": {"errors"},
    "core": {"config", "errors"},
    "observe": {"errors"},
    "activity": {"config", "observe", "errors"},
    "machine": {"errors"},
    "systemd": {"config", "state", "errors"},
    "readiness": {"config", "errors"},
    "condition": set[str](),
    "state": {"errors"},
    "links": set[str](),
    "compiled": set[str](),
    "watch": {"links", "errors"},
    "engine": {"core", "config", "readiness", "state", "observe", "errors"},
    "http": {"engine", "core", "config", "activity", "machine", "observe", "condition", "errors"},
    "loop": set[str](),
    "source": {"config", "systemd", "errors"},
    "launcher": {"config", "systemd", "links", "errors"},
    "doctor": {"config", "systemd", "links", "errors"},
    "daemon": {
        "engine",
        "http",
        "systemd",
        "config",
        "activity",
        "machine",
        "observe",
        "loop",
        "condition",
        "state",
        "watch",
        "source",
        "errors",
    },
    "__main__": {"daemon", "launcher", "doctor", "systemd", "config", "loop", "errors"},
}

# Third-party libraries and the only modules that import them.
DOORS = {
    "yaml": {"config.dialect"},
    "pydantic": {"config"},
    "dbus_next": {"systemd.bus"},
    "dbus_fast": {"systemd.bus"},
    "sdnotify": {"systemd.service"},
    "aiohttp": {"http"},
    "prometheus_client": {"http.metrics"},
    "uvloop": {"loop"},
    "watchdog": {"watch"},
}

# What the launcher must not have in its process, whoever imports it. (`ssl` comes with asyncio.)
NOT_AS_ROOT = ("aiohttp", "uvloop", "http", "llamaswapd.http", "llamaswapd.engine")

FORBIDDEN_IN_CORE = {"asyncio", "time", "socket", "os", "subprocess", "threading", "random", "pathlib"}


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found.append((name.removesuffix(".__init__"), ast.parse(path.read_text())))
    return found


def imports(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def layer(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize(("module", "tree"), [pytest.param(*found, id=found[0]) for found in modules()])
class TestEachModule:
    def test_uses_only_the_layers_below_it(self, module: str, tree: ast.Module) -> None:
        if module in ("__init__", ""):
            return
        own = layer(module)
        used = {name.split(".")[1] for name in imports(tree) if name.startswith("llamaswapd.")}
        assert used - {own, "__version__"} <= MAY_USE[own]

    def test_imports_a_library_only_where_its_door_is(self, module: str, tree: ast.Module) -> None:
        for library, doors in DOORS.items():
            if any(name.split(".")[0] == library for name in imports(tree)):
                assert module in doors or layer(module) in doors, f"{module} imports {library}"

    def test_core_knows_no_clock_no_loop_and_no_machine(self, module: str, tree: ast.Module) -> None:
        if layer(module) != "core":
            return
        assert not {name.split(".")[0] for name in imports(tree)} & FORBIDDEN_IN_CORE
        assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))


def test_every_layer_of_the_table_exists() -> None:
    present = {layer(name) for name, _ in modules()} - {"__init__", ""}
    assert present <= set(MAY_USE)


def test_the_launcher_has_nothing_of_http_in_its_process() -> None:
    asked = "import sys; import llamaswapd.__main__, llamaswapd.launcher.service; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = done.stdout.split()
    assert "llamaswapd.launcher.service" in loaded
    assert [name for name in NOT_AS_ROOT if name in loaded] == []


def test_the_launcher_can_be_read_in_one_sitting() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in (PACKAGE / "launcher").glob("*.py"))
    assert lines < 700
