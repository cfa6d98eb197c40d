"""The Debian package, built once for all tests that install it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from beds import ROOT


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The package, and one of a higher version of the program; both built as `make deb` does, in trees of their own."""
    trees = [tmp_path_factory.mktemp("deb") for _ in range(2)]
    for tree in trees:
        names = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z"], text=True).rstrip("\0").split("\0")
        for name in names:
            if (ROOT / name).exists():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tree / name)
    version = trees[1] / "llamaswapd" / "__init__.py"
    version.write_text(re.sub(r'(__version__ = ".*)"', r'\1.1"', version.read_text()))
    environ = {**os.environ, "DEB_BUILD_OPTIONS": "nocheck"}
    commands = [[trees[0] / "packaging/build-deb", "--lint"], [trees[1] / "packaging/build-deb"]]
    builds = [
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    for build in builds:
        said, _ = build.communicate()
        assert build.returncode == 0, said[-5000:]
    return [next((tree / "dist").glob("*.deb")) for tree in trees]
