"""What the checks in a bed need: a daemon, a client of it, and what systemd says. Standard library only."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Answer = TypeVar("Answer")

TREE = Path("/opt/llamaswapd")
SERVER = f"{sys.executable} -S -E {TREE}/tests/models/server.py"
INSTANT = f"{sys.executable} -I -S {TREE}/tests/models/instant.py"
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE_S = 30.0


class Client:
    """A client of the daemon on a port. Every call has a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port

    def call(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """Return status and text of an answer."""
        connection = self._connect()
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            try:
                data = response.read()
            except http.client.IncompleteRead as error:  # of an answer that was cut, what there is
                data = error.partial
            return response.status, data.decode()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, str]:
        return self.call("GET", path)

    def ask(self, model: str, **extra: object) -> tuple[int, str]:
        return self.call("POST", "/v1/chat/completions", {"model": model, **extra})

    def load(self, model: str) -> str:
        """Have a model running; return its unit."""
        status, text = self.ask(model)
        assert status == 200, text
        return f"llamaswapd-model-{model}.service"

    def unload(self, model: str = "") -> None:
        status, text = self.call("POST", "/api/models/unload" + (f"/{model}" if model else ""))
        assert status == 200, text

    @contextmanager
    def lines(self, path: str) -> Iterator[Iterator[str]]:
        """Yield the lines of an answer that has no end, as they come."""
        connection = self._connect()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            yield (line.decode().rstrip("\n") for line in response)
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)


def command(config: Path, port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "llamaswapd", "-config", str(config), "-listen", f"127.0.0.1:{port}", *options]


@contextmanager
def by_hand(
    config: Path, port: int, *options: str, prefix: tuple[str, ...] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run the daemon as a process, from when it listens; the block, or this, ends it."""
    environment = {**os.environ, "PYTHONPATH": str(TREE), **environment}
    argv = [*prefix, *command(config, port, *options)]
    daemon = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert any("listening on" in line for line in daemon.stdout or ()), f"exit status {daemon.wait()}"
        yield daemon
    finally:
        daemon.terminate()
        daemon.communicate(timeout=PATIENCE_S)


def output(*argv: str) -> str:
    """Return what a command prints; a failure fails the check."""
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout}{done.stderr}"
    return done.stdout


def show(unit: str, *properties: str) -> dict[str, str]:
    """Return properties of a unit as `systemctl show` prints them."""
    text = output("systemctl", "show", unit, *(f"--property={name}" for name in properties))
    return dict(line.split("=", 1) for line in text.splitlines())


def units(pattern: str = "llamaswapd-*model-*", *options: str) -> list[str]:
    """Return the units there are, whatever their state."""
    rows = output("systemctl", *options, "list-units", "--all", "--plain", "--no-legend", pattern).splitlines()
    return [row.split()[0] for row in rows]


def main_pid(unit: str) -> int:
    return int(show(unit, "MainPID")["MainPID"])


def processes(unit: str) -> list[int]:
    """Return every process in the unit's cgroup."""
    group = show(unit, "ControlGroup")["ControlGroup"].lstrip("/")
    return [int(pid) for pid in (cgroup_root() / group / "cgroup.procs").read_text().split()]


def cgroup_root() -> Path:
    """Return where systemd's tree is mounted; in a container that may be below `unified`."""
    return CGROUPS / "unified" if (CGROUPS / "unified").is_dir() else CGROUPS


def environment_of(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def eventually(question: Callable[[], Answer], what: str) -> Answer:
    """Ask until the answer is true; for what is written by others, who give no sign of it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := question()):
        assert time.monotonic() < deadline, f"still not so: {what}"
        time.sleep(0.05)
    return answer


def log_of(*match: str) -> str:
    return output("journalctl", "--no-pager", "--quiet", "-o", "cat", *match)


def error_message(text: str) -> str:
    message: Any = json.loads(text)["error"]["message"]
    assert isinstance(message, str)
    return message


def systemd_version() -> int:
    return int(output("systemctl", "--version").split()[1])
