"""Debian with a real systemd, as `testbed` boots it, with the program and its tests in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TESTBED = Path(__file__).with_name("testbed")
ROOT = TESTBED.parents[2]
SOURCES = (ROOT / "llamaswapd", ROOT / "tests", ROOT / "packaging", ROOT / "units")
INSIDE = "/opt/llamaswapd"

# Debian's, with its libraries and without the project's settings for it.
PYTEST = (
    "env", f"PYTHONPATH={INSIDE}", "PYTHONDONTWRITEBYTECODE=1",
    "python3", "-m", "pytest", "--quiet", "--tb=short", "-p", "no:cacheprovider",
    "-c", f"{INSIDE}/tests/testbed/inside.ini", f"--rootdir={INSIDE}",
)  # fmt: skip

# For a package that was installed: nothing of the tree can be imported but the tests.
INSTALLED = (
    "python3", "-m", "pytest", "--quiet", "--tb=short", "-p", "no:cacheprovider",
    "-c", f"{INSIDE}/tests/testbed/inside.ini", f"--rootdir={INSIDE}", f"--confcutdir={INSIDE}/tests/testbed",
)  # fmt: skip

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="booting a bed takes root")


@contextmanager
def container(suite: str, *options: str) -> Iterator[str]:
    """Have a container of a Debian release running; yield its name."""
    name = f"llamaswapd-{os.getpid()}-{suite}"
    drive("start", name, "--suite", suite, *options)
    try:
        drive("copy-in", name, *map(str, SOURCES), INSIDE)
        yield name
    finally:
        drive("stop", name, "--now")


def run_in_vm(suite: str, *command: str, packages: tuple[str, ...] = ()) -> None:
    """Boot a virtual machine of a Debian release, with further packages of it, for one command."""
    copies = [word for source in SOURCES for word in ("--copy", f"{source}:{INSIDE}")]
    debs = [word for package in packages for word in ("--deb", package)]
    drive("vm", "--suite", suite, *debs, *copies, "--", *command)


def drive(*arguments: str) -> None:
    """Run `testbed`; its output is shown if it, or what it runs, fails."""
    done = subprocess.run([TESTBED, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        pytest.fail(f"testbed {' '.join(arguments)}: exit status {done.returncode}", pytrace=False)
