"""What `pyproject.toml` cannot say: the modules of `llamaswapd/compiled.py` are compiled where that can be done.

It takes a C compiler, Python's header files, mypy, which pip fetches for as long as it builds, and a minute or two.
Without the first two, or if compiling fails, the package is of sources alone, which do the same. `LLAMASWAPD_COMPILE=1`
makes an error of that; with `0` nothing is compiled, nor is mypy fetched, and the package is the same for all machines.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
SWITCH = "LLAMASWAPD_COMPILE"
OLDEST_MYPY = "1.15"  # that of Debian 13; nobody has looked at what older ones make
TRIED_MYPY = "2.4"  # for whoever has none
MACHINES = ("aarch64", "x86_64")  # that mypy has wheels for: else it would be compiled as well, for much longer
LAST_PYTHON = (3, 14)  # that it was tried with
BYTES_ADDED = "CPyBytes_Concat("  # in generated code

sys.path.insert(0, str(HERE))
from llamaswapd import compiled  # noqa: E402


class Build(build_ext):
    """Compiles, and notes what; while it does, nothing counts as compiled."""

    def run(self) -> None:
        if self.inplace and compiled.is_current():
            return
        folder = (HERE if self.inplace else Path(self.build_lib)) / compiled.PACKAGE.name
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / compiled.NOTE
        for old in (note, *folder.rglob("*.so")):  # of modules, too, that are not compiled any more
            old.unlink(missing_ok=True)
        state = compiled.fingerprint(compiled.PACKAGE)
        try:
            # Not before: setuptools runs this file several times, to ask for names and versions.
            self.distribution.ext_modules = extensions()
            command = build_ext(self.distribution)
            command.inplace, command.build_lib, command.build_temp = self.inplace, self.build_lib, self.build_temp
            command.ensure_finalized()
            command.run()
        except (Exception, SystemExit) as error:  # of mypy, or of the C compiler
            if wish == "1":
                raise
            for made in folder.rglob("*.so"):
                made.unlink()
            self.extensions = []
            say(str(error))
        else:
            note.write_text(state)

    def get_outputs(self) -> list[str]:
        note = Path(self.build_lib, compiled.PACKAGE.name, compiled.NOTE)
        return [*super().get_outputs(), *([str(note)] if self.extensions else [])]


def extensions() -> list[Extension]:
    from mypy.version import __version__
    from mypyc.build import mypycify

    if _numbers(__version__) < _numbers(OLDEST_MYPY):
        sys.exit(f"mypy {__version__} is too old to compile llamaswapd: take {OLDEST_MYPY} or later, or do not compile")
    sources = [str(Path(compiled.PACKAGE.name, compiled.source(module))) for module in compiled.MODULES]
    # Whether the types are right is checked elsewhere; here they say what may be taken for granted.
    options = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports", "--python-version=3.11"]
    options.append("--strict-bytes")  # mypy 2 has it so by itself
    made = mypycify([*options, *sources], debug_level="0")
    for extension in made:
        if any(BYTES_ADDED in Path(file).read_text() for file in extension.sources if "__native" in file):
            sys.exit("bytes are put together by +, which loses memory before mypy 2.2: join them (ARCHITECTURE.md)")
        extension.extra_compile_args.append("-Wno-error")  # a newer compiler finds more to say of generated code
        if extension.name.endswith(compiled.LIBRARY):  # all of the code; mypyc would have it beside the package
            extension.name = f"{compiled.PACKAGE.name}.{extension.name}"
    return made


def lacking() -> str:
    """Return what this machine lacks for compiling, in words; nothing if it can be tried."""
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "ordinary CPython"
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"wheels of mypy's for {sys.platform} on {platform.machine()}"
    if sys.version_info[:2] > LAST_PYTHON:
        return "Python {}.{} or earlier".format(*LAST_PYTHON)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "").split() or ["cc"]
    if shutil.which(compiler[0]) is None:
        return f"C compiler ({compiler[0]})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.exists() else str(header)


def say(what: str) -> None:
    print(f"llamaswapd's sources are used, not compiled: {what}", file=sys.stderr)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]


wish = os.environ.get(SWITCH, "")
if wish not in ("", "0", "1"):
    sys.exit(f"{SWITCH}={wish}: 1 compiles or fails, 0 does not compile, without it what can be compiled is")
missing = lacking() if wish == "" else ""
if wish == "0" or missing:
    if missing:
        say(f"no {missing}")
    setup()
else:
    named = [Extension(f"{compiled.PACKAGE.name}.{module}", []) for module in compiled.MODULES]
    needed = [] if find_spec("mypyc") else [f"mypy=={TRIED_MYPY}.*"]  # which pip asks for first
    setup(ext_modules=named, cmdclass={"build_ext": Build}, setup_requires=needed)
