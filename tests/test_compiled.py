"""What can be compiled, and that it is used only where the sources say the same."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import MemberDescriptorType

import pytest

from llamaswapd import compiled

HOT = "llamaswapd.http.wire"
ASK = f"import {HOT} as hot; print(hot.__file__)"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that has been compiled, to what no Python can load."""
    folder = tmp_path / "llamaswapd"
    shutil.copytree(compiled.PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.so", compiled.NOTE))
    for module in compiled.MODULES:
        (folder / compiled.source(module)).with_suffix(EXTENSION_SUFFIXES[0]).write_bytes(b"compiled")
    (folder / compiled.NOTE).write_text(compiled.fingerprint(folder))
    return folder


def loaded(package: Path, code: str = ASK, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != compiled.SWITCH}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=package.parent,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"} | variables,
    )


def is_of_sources(package: Path, **variables: str) -> bool:
    done = loaded(package, **variables)
    if done.returncode:
        assert "ImportError" in done.stderr  # there is nothing in the extension module
        return False
    return done.stdout.strip() == str(package / "http/wire.py")


def state(package: Path, **variables: str) -> str:
    return loaded(package, "from llamaswapd import compiled; print(compiled.state())", **variables).stdout.strip()


def test_what_has_been_compiled_is_used(package: Path) -> None:
    assert not is_of_sources(package)
    assert state(package) == "compiled"


@pytest.mark.parametrize("module", compiled.MODULES)
def test_the_sources_are_used_once_one_of_them_has_changed(package: Path, module: str) -> None:
    with (package / compiled.source(module)).open("a") as file:
        file.write("\n")
    assert is_of_sources(package)
    assert state(package) == "not compiled since a source was changed"


def test_the_sources_are_used_where_nobody_knows_what_was_compiled(package: Path) -> None:
    (package / compiled.NOTE).unlink()  # a build that was interrupted
    assert is_of_sources(package)
    assert state(package) == "not compiled"


def test_the_sources_are_used_if_somebody_wants_it(package: Path) -> None:
    assert is_of_sources(package, LLAMASWAPD_COMPILED="0")
    assert not is_of_sources(package, LLAMASWAPD_COMPILED="1")
    assert state(package, LLAMASWAPD_COMPILED="0") == "not compiled, as LLAMASWAPD_COMPILED=0 has it"


def test_another_python_uses_the_sources(package: Path) -> None:
    for path in package.rglob(f"*{EXTENSION_SUFFIXES[0]}"):
        path.rename(path.with_name(path.name.split(".")[0] + ".cpython-399-x86_64-linux-gnu.so"))
    assert is_of_sources(package)
    assert state(package) == "not compiled for this version of Python"


def test_a_package_that_is_not_compiled_is_looked_through_by_nobody(package: Path) -> None:
    for path in (*package.rglob("*.so"), package / compiled.NOTE):
        path.unlink()
    assert is_of_sources(package)
    finders = loaded(package, "import sys, llamaswapd; print([type(each).__name__ for each in sys.meta_path])").stdout
    assert "_Sources" not in finders


# ---- what is compiled, and when


MAY_COMPILE = pytest.mark.skipif(
    not os.path.exists(sysconfig.get_path("include") + "/Python.h") or sys.version_info[:2] > (3, 14),
    reason="compiling is not even tried without Python's header files, or with a newer Python",
)


@pytest.fixture
def checkout(package: Path) -> Path:
    """What is needed to compile, around a package that is not."""
    for path in (*package.rglob("*.so"), package / compiled.NOTE):
        path.unlink()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(compiled.PACKAGE.parent / name, package.parent)
    return package.parent


def compile_in(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in (compiled.SWITCH, "CC")}
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        capture_output=True,
        text=True,
        cwd=checkout,
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"} | variables,
    )


def is_of_sources_alone(checkout: Path) -> bool:
    return not list(checkout.rglob("*.so")) and not (checkout / "llamaswapd" / compiled.NOTE).exists()


def old_mypy(folder: Path) -> str:
    """Return the path of a mypy that is too old, so that compiling fails, and soon."""
    for name, content in (("mypy/version.py", '__version__ = "1.14"'), ("mypyc/build.py", "mypycify = None")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(content)
        (folder / name).with_name("__init__.py").touch()
    return str(folder)


@MAY_COMPILE
def test_without_a_compiler_the_sources_are_all(checkout: Path) -> None:
    done = compile_in(checkout, CC="/missing/cc -pipe")
    assert done.returncode == 0, done.stderr
    assert "llamaswapd's sources are used, not compiled: no C compiler (/missing/cc)\n" in done.stderr
    assert is_of_sources_alone(checkout)


@MAY_COMPILE
def test_what_cannot_be_compiled_after_all_is_left_to_the_sources(checkout: Path, tmp_path: Path) -> None:
    wire = checkout / "llamaswapd/http/wire.cpython-311-x86_64-linux-gnu.so"
    wire.touch()  # of an attempt that was interrupted
    done = compile_in(checkout, CC="true", PYTHONPATH=old_mypy(tmp_path / "old"))
    assert done.returncode == 0, done.stderr
    assert "llamaswapd's sources are used, not compiled: mypy 1.14 is too old" in done.stderr
    assert is_of_sources_alone(checkout)


def test_who_insists_gets_an_error(checkout: Path, tmp_path: Path) -> None:
    done = compile_in(checkout, CC="true", PYTHONPATH=old_mypy(tmp_path / "old"), LLAMASWAPD_COMPILE="1")
    assert done.returncode != 0
    assert "mypy 1.14 is too old to compile llamaswapd: take 1.15 or later, or do not compile" in done.stderr


def test_nothing_is_compiled_for_who_does_not_want_it(checkout: Path, tmp_path: Path) -> None:
    done = compile_in(checkout, CC="true", PYTHONPATH=old_mypy(tmp_path / "old"), LLAMASWAPD_COMPILE="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert is_of_sources_alone(checkout)


def test_another_wish_is_refused(checkout: Path) -> None:
    done = compile_in(checkout, LLAMASWAPD_COMPILE="yes")
    assert done.returncode != 0
    assert "LLAMASWAPD_COMPILE=yes: 1 compiles or fails, 0 does not compile, without it" in done.stderr


def test_what_has_been_compiled_already_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    package = checkout / "llamaswapd"
    made = [(package / compiled.source(module)).with_suffix(EXTENSION_SUFFIXES[0]) for module in compiled.MODULES]
    for path in made:
        path.write_bytes(b"compiled")
    (package / compiled.NOTE).write_text(compiled.fingerprint(package))
    done = compile_in(checkout, CC="true", PYTHONPATH=old_mypy(tmp_path / "old"), LLAMASWAPD_COMPILED="0")
    assert done.returncode == 0, done.stderr
    assert {path.read_bytes() for path in made} == {b"compiled"}


# ---- what a module must keep to


def trees() -> dict[str, ast.Module]:
    found = {}
    for path in compiled.PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(compiled.PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def test_only_compiled_classes_derive_from_compiled_ones() -> None:
    """Others cannot: making one raises a TypeError."""
    wrong = []
    for name, tree in trees().items():
        if name in compiled.MODULES:
            continue
        origin = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    origin[alias.asname or alias.name] = node.module.removeprefix("llamaswapd.")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                wrong += [f"{name}.{node.name}" for base in bases if origin.get(base) in compiled.MODULES]
    assert wrong == []


def test_no_property_takes_the_place_of_a_slot() -> None:
    """A compiled method of the base class would read the slot."""
    for module in compiled.MODULES:
        for kind in vars(importlib.import_module(f"llamaswapd.{module}")).values():
            if not isinstance(kind, type) or kind.__module__ != f"llamaswapd.{module}":
                continue
            for name, value in vars(kind).items():
                if isinstance(value, property):
                    slots = [base for base in kind.__mro__ if isinstance(vars(base).get(name), MemberDescriptorType)]
                    assert not slots, f"{kind.__name__}.{name}"


def compiled_nodes() -> Iterator[tuple[str, ast.AST]]:
    for name, tree in trees().items():
        if name in compiled.MODULES:
            for node in ast.walk(tree):
                yield f"{name}:{getattr(node, 'lineno', 0)}", node


def test_nothing_is_a_coroutine_or_a_generator() -> None:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.Yield, ast.YieldFrom)
    assert [where for where, node in compiled_nodes() if isinstance(node, kinds)] == []


def test_nothing_is_referred_to_weakly() -> None:
    """Its memory would be referred to when it is gone."""
    assert [where for where, node in compiled_nodes() if getattr(node, "value", None) == "__weakref__"] == []
