"""What `pyproject.toml` cannot say: with `LLAMASWAPD_COMPILE=1`, the modules of `llamaswapd/compiled.py` are compiled.

That takes mypy, a C compiler and Python's header files, and a minute or two. Without the variable nothing is compiled,
and the package is the same for all machines.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
OLDEST_MYPY = "1.15"  # that of Debian 13; nobody has looked at what older ones make
BYTES_ADDED = "CPyBytes_Concat("  # in generated code

sys.path.insert(0, str(HERE))
from llamaswapd import compiled  # noqa: E402


class Build(build_ext):
    """Compiles, and notes what; while it does, nothing counts as compiled."""

    def run(self) -> None:
        folder = (HERE if self.inplace else Path(self.build_lib)) / compiled.PACKAGE.name
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / compiled.NOTE
        for old in (note, *folder.rglob("*.so")):  # of modules, too, that are not compiled any more
            old.unlink(missing_ok=True)
        state = compiled.fingerprint(compiled.PACKAGE)
        # Not before: setuptools runs this file several times, to ask for names and versions.
        self.distribution.ext_modules = extensions()
        command = build_ext(self.distribution)
        command.inplace, command.build_lib, command.build_temp = self.inplace, self.build_lib, self.build_temp
        command.ensure_finalized()
        command.run()
        note.write_text(state)

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib, compiled.PACKAGE.name, compiled.NOTE))]


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


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]


if os.environ.get("LLAMASWAPD_COMPILE") == "1":
    named = [Extension(f"{compiled.PACKAGE.name}.{module}", []) for module in compiled.MODULES]
    needed = [] if find_spec("mypyc") else [f"mypy>={OLDEST_MYPY}"]  # which pip asks for first
    setup(ext_modules=named, cmdclass={"build_ext": Build}, setup_requires=needed)
else:
    setup()
