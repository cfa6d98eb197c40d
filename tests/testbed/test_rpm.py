"""The package for Fedora is built, is clean by rpmlint, and does in a Debian 13 what can be shown there.

Debian's rpm installs it, without its dependencies, which are Debian's own here; a few lines play Fedora's
systemd-update-helper.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from beds import INSIDE, NEEDS_ROOT, PYTEST, ROOT, container, drive

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600), NEEDS_ROOT]

PACKAGES = ("rpm", "nginx-light", "openssl", "python3-prometheus-client")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The package, and one of a higher version of the program; built as `make rpm` does, in trees of their own."""
    trees = [tmp_path_factory.mktemp("rpm") for _ in range(2)]
    for tree in trees:
        names = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z"], text=True).rstrip("\0").split("\0")
        for name in filter(lambda name: (ROOT / name).exists(), names):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    version = trees[1] / "llamaswapd" / "__init__.py"
    version.write_text(re.sub(r'(__version__ = ".*)"', r'\1.1"', version.read_text()))
    builds = [
        subprocess.Popen(
            [tree / "packaging/build-rpm", "--testbed", "--lint"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for tree in trees
    ]
    for build in builds:
        said, _ = build.communicate()
        assert build.returncode == 0, said[-5000:]
    return [next((tree / "dist").glob("*.noarch.rpm")) for tree in trees]


def test_the_package_is_installed_used_as_the_pages_say_upgraded_and_erased(packages: list[Path]) -> None:
    with container("trixie") as bed:
        drive("apt", bed, "update")
        drive("apt", bed, "install", "-y", "--no-install-recommends", *PACKAGES)
        drive("copy-in", bed, str(ROOT / "docs"), INSIDE)
        drive("copy-in", bed, *map(str, packages), "/opt/rpms")
        inside = " ".join(f"/opt/rpms/{package.name}" for package in packages)
        # Nothing of the tree can be imported but the tests.
        without_path = tuple(word for word in PYTEST if not word.startswith(("env", "PYTHONPATH=")))
        program = ("env", f"PACKAGES={inside}", "PYTHONPATH=" + f"{INSIDE}/tests/docs", *without_path)
        drive("exec", bed, "--", *program, "-x", f"{INSIDE}/tests/testbed/inside_rpm.py")
