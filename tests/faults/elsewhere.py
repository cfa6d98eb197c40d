"""The same harness in a Debian with a systemd of its own, as `testbed` boots it.

In a container it runs as a unit that writes into a file, because what `testbed exec` runs hangs on the bus.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTBED = ROOT / "tests" / "testbed" / "testbed"
SOURCES = (ROOT / "llamaswapd", ROOT / "tests", ROOT / "units", ROOT / "packaging")
INSIDE = "/opt/llamaswapd"
ENVIRONMENT = {"PYTHONPATH": INSIDE, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
SUITES = ("bookworm", "trixie")

# Follows the unit's output until the unit has ended, and ends with its exit status. Whatever ends it ends `tail` too,
# which would hold on to our end of the pipe.
FOLLOW = """cd "$0"; touch out; tail -n +1 -s 0.2 -f out &
trap "kill $!" EXIT; trap "exit 143" TERM
until [ -s status ]; do sleep 0.2; done
sleep 0.5; exit "$(cat status)"
"""


@contextmanager
def in_container(suite: str, plays: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """Boot a container of a Debian release, have Python run there with one argument list after the other.

    Yields a command that prints what they print, and ends when they have.
    """
    name = f"faults-{os.getpid()}-{suite}"
    with tempfile.TemporaryDirectory(prefix="llamaswapd-faults-") as folder:
        drive("start", name, "--suite", suite, "--bind-rw", f"{folder}:/faults")
        try:
            drive("copy-in", name, *map(str, SOURCES), INSIDE)
            one_by_one = "; ".join(f"{shlex.join(('python3', *play))} || status=1" for play in plays)
            script = f"cd {INSIDE}; status=0; {one_by_one}; echo $status >/faults/status"
            variables = [f"--setenv={key}={value}" for key, value in ENVIRONMENT.items()]
            to_file = ("StandardOutput=append:/faults/out", "StandardError=append:/faults/out")
            settings = [f"--property={each}" for each in to_file]
            run = ("systemd-run", "--quiet", "--unit=faults", "--service-type=exec", *variables, *settings)
            drive("exec", name, "--", *run, "sh", "-c", script.replace("$", "$$"))
            yield ["bash", "-c", FOLLOW, folder]
        finally:
            drive("stop", name, "--now")


def in_vm(suite: str, play: Sequence[str]) -> list[str]:
    """Return the command that boots a virtual machine of a Debian release and has Python run there."""
    copies = [word for source in SOURCES for word in ("--copy", f"{source}:{INSIDE}")]
    variables = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
    command = ("env", "-C", INSIDE, *variables, "python3", *play)
    return [str(TESTBED), "vm", "--suite", suite, "--timeout", "3600", *copies, "--", *command]


class NoBed(Exception):
    """`testbed` could not do what it was told."""


def drive(*arguments: str) -> None:
    """Run `testbed`; raises NoBed with its output."""
    done = subprocess.run([TESTBED, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise NoBed(f"testbed {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}")
