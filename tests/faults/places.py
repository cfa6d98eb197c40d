"""Where the program runs, from outside: started, killed and told to reload as its users would do it.

Nothing here imports the program: what is known comes from the command line, HTTP, systemctl and /proc.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.daemon_support import MARK, clear_away, environment, free_ports, processes
from tests.faults.wire import Broken, ask, eventually

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "tests" / "models"
VERSION = "LLAMASWAPD_TEST_VERSION"
PORT = 8080  # of the units
BACKLOG = 4096
ANSWERS_WITHIN_S = 20.0
STOPS_WITHIN_S = 50.0
TOLD_LINES = 25
REPEATS = 100
UNANSWERED = ("Transport endpoint", "disconnected from message bus", "Connection reset by peer", "Connection refused")
JOURNAL = ("--no-pager", "--quiet", "-o", "short-precise", "--lines=4000")

Json = dict[str, Any]


class Failed(Exception):
    """A command that should have succeeded."""


class Found(NamedTuple):
    """A model's unit as `systemctl list-units` shows it."""

    active: str
    sub: str


class Place:
    """A daemon somewhere. `start` and `stop` may be called again and again."""

    name = ""
    port = PORT
    is_service = False  # a unit of systemd's: restarted by it, with Type=notify, a watchdog and STATUS=
    instance = ""
    config_mode = 0o640

    def __init__(self) -> None:
        self.mark = f"faults-{os.getpid()}"
        self.config: Json = {}
        self.config_file = Path()
        self.works = Path()  # a file that models look for
        self._version = 0
        self._told: tuple[int, float] = (0, 0.0)  # the daemon that was last told to reload, and when

    async def start(self, config: Json, *flags: str, settings: str = "") -> None:
        """Start a daemon that listens on sockets which outlast it; `settings` go into its unit, if it has one."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Stop it like an operator, and take away what it left."""
        raise NotImplementedError

    async def reload(self) -> None:
        """Have it reload, as `systemctl reload` does."""
        raise NotImplementedError

    async def revive(self) -> None:
        """Have it started again after its death; where systemd does so, nothing need be done."""

    async def daemon_pid(self) -> int:
        """Return its process, 0 if there is none."""
        raise NotImplementedError

    async def log(self) -> str:
        """Return the last lines of its log."""
        raise NotImplementedError

    async def systemctl(self, *arguments: str) -> str:
        """Have systemctl ask the manager that runs the models; raises Failed."""
        raise NotImplementedError

    # ---- the daemon

    async def kill(self, number: int = signal.SIGKILL) -> None:
        """Kill the daemon and return when it is no more."""
        pid = await self.daemon_pid()
        assert pid, "there is no daemon to kill"
        os.kill(pid, number)
        await eventually(is_gone(pid), f"the daemon {pid} is gone")

    async def answers(self) -> None:
        """Wait until it answers."""

        async def is_healthy() -> bool:
            with suppress(Broken, TimeoutError):
                async with asyncio.timeout(1):  # its socket accepts, whether it is there or not
                    return (await ask(self.port, "GET", "/health")).status == 200
            return False

        await eventually(is_healthy, "the daemon answers", ANSWERS_WITHIN_S)

    async def config_error(self) -> str:
        """Return what it says to be wrong with its configuration."""
        return str((await ask(self.port, "GET", "/health?verbose")).json()["config"]["error"] or "")

    async def running(self) -> dict[str, str]:
        """Return what it says is running: model → state."""
        listing = (await ask(self.port, "GET", "/running")).succeeded().json()["running"]
        return {entry["model"]: entry["state"] for entry in listing}

    # ---- its configuration

    def write(self, config: Json) -> None:
        """Replace the configuration in one step."""
        self.config = config
        self.write_text(json.dumps(config, indent=1))

    def write_text(self, text: str) -> None:
        new = self.config_file.with_suffix(".new")
        new.write_text(text)
        new.chmod(self.config_mode)
        new.replace(self.config_file)

    async def change(self, model: str) -> str:
        """Change a model's definition and have it heeded; return the version that its process then has."""
        self._version += 1
        version = str(self._version)
        models = self.config["models"]
        variables = [f"{MARK}={self.mark}", f"{VERSION}={version}"]
        self.write({**self.config, "models": {**models, model: {**models[model], "env": variables}}})
        await self._tell()
        return version

    async def reload_if_missed(self) -> None:
        """Tell the daemon again to reload if it was another that was told, or if that was a while ago."""
        await asyncio.sleep(0.02)
        pid, at = self._told
        if time.monotonic() > at + 2 or pid != await self.daemon_pid():
            await self._tell()

    async def _tell(self) -> None:
        self._told = (await self.daemon_pid(), time.monotonic())
        with suppress(Failed):  # it may be dead at the moment, and reads it when it is back
            await self.reload()

    @staticmethod
    def version_of(pid: int) -> str:
        return variable(pid, VERSION)

    # ---- the models

    def unit(self, model: str) -> str:
        return f"llamaswapd-{self.instance}{'-' if self.instance else ''}model-{model}.service"

    async def units(self) -> dict[str, Found]:
        """Return the units of models that systemd knows of, whatever their state."""
        options = ("--all", "--plain", "--no-legend", "--full")
        rows = (await self.systemctl("list-units", *options, self.unit("*"))).splitlines()
        return {unit: Found(active, sub) for unit, _, active, sub, *_ in map(str.split, rows)}

    async def main_pid(self, unit: str) -> int:
        """Return the main process of a unit, 0 if it has none."""
        return int(await self.systemctl("show", "--property=MainPID", "--value", unit) or 0)

    def model_processes(self) -> dict[int, str]:
        """Return every process of every model that is alive: pid → the unit whose cgroup it is in, or ""."""
        mark = f"{MARK}={self.mark}\0".encode()
        return {pid: unit_of(pid) for pid in processes() if mark in environment(pid) and not is_zombie(pid)}


class Private(Place):
    """A daemon with a systemd of its own, on a socket that this process keeps, started again by this process."""

    name = "private manager"
    instance = "f"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="llamaswapd-faults-"))
        self.state = self.folder / "state"
        self.state.mkdir()
        self.config_file = self.folder / "config.yaml"
        self.works = self.folder / "works"
        self._output = self.folder / "output"
        self._process: subprocess.Popen[bytes] | None = None
        self._flags: tuple[str, ...] = ()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.port = self._socket.getsockname()[1]

    async def start(self, config: Json, *flags: str, settings: str = "") -> None:
        self.write({"startPort": free_ports(), **config})
        self._flags = flags
        await self.revive()
        await self.answers()

    async def revive(self) -> None:
        self._launch()

    def _launch(self) -> None:
        options = ("-config", str(self.config_file), "-instance", self.instance, "-manager", "private", *self._flags)
        own = {"RUNTIME_DIRECTORY": str(self.folder), "STATE_DIRECTORY": str(self.state), "PYTHONUNBUFFERED": "1"}
        # The shell becomes the daemon, whose pid is then the one that the sockets are for: sd_listen_fds(3).
        passed = (
            'exec 3<&"$0"; [ "$0" = 3 ] || eval "exec $0<&-"; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http exec "$@"'
        )
        fd = self._socket.fileno()
        argv = ["bash", "-c", passed, str(fd), sys.executable, "-m", "llamaswapd", *options]
        with self._output.open("ab") as output:
            environ = {**os.environ, **own}
            self._process = subprocess.Popen(argv, env=environ, cwd=ROOT, stdout=output, stderr=output, pass_fds=[fd])

    async def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()
            with suppress(AssertionError):
                await eventually(is_gone(self._process.pid), "it has ended", STOPS_WITHIN_S)
            self._process.kill()
            self._process.wait()
        clear_away(self.folder)
        shutil.rmtree(self.folder / self.instance, ignore_errors=True)

    def close(self) -> None:
        self._socket.close()
        shutil.rmtree(self.folder)

    async def reload(self) -> None:
        pid = await self.daemon_pid()
        if not pid or not handles(pid, signal.SIGHUP):  # it would die of it; systemctl waits until it has started
            raise Failed("no daemon to reload")
        os.kill(pid, signal.SIGHUP)

    async def daemon_pid(self) -> int:
        return self._process.pid if self._process and self._process.poll() is None else 0

    async def log(self) -> str:
        return last_lines(self._output.read_text(errors="replace"))

    async def systemctl(self, *arguments: str) -> str:
        runtime = self.folder / self.instance / "private"
        bus = {"XDG_RUNTIME_DIR": str(runtime), "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus"}
        return await answer_of("systemctl", "--user", *arguments, env={**os.environ, **bus})


class Service(Place):
    """The units of a machine that was booted with systemd, as a package installs them, in two halves. Needs root.

    The program is not installed: a file where the units expect it hands over to the source tree.
    """

    is_service = True
    launcher = "llamaswapd-launcher.service"  # the other half, "" if there is but one
    installed_in = Path("/usr/lib/systemd/system")
    drop_in = Path("/etc/systemd/system/llamaswapd.service.d/faults.conf")
    state = Path("/var/lib/llamaswapd")
    unit_files = ROOT / "units"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__()
        # Seen by models, whose /tmp is their own.
        self.works = Path(f"/srv/{self.mark}-works")
        self.config_file = Path("/etc/llamaswapd/config.yaml")
        self.units_of_ours = [file.name for file in self.unit_files.glob("llamaswapd*") if file.is_file()]
        program = Path("/usr/bin/llamaswapd")
        program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m llamaswapd "$@" $LLAMASWAPD_FLAGS\n')
        program.chmod(0o755)
        # As a package does: none of those who run it can write there.
        subprocess.run([sys.executable, "-m", "compileall", "-q", ROOT / "llamaswapd"], check=True)
        self._install()

    def _install(self) -> None:
        for source, target in (
            ("units/llamaswapd*", self.installed_in),
            ("packaging/dbus/*.conf", Path("/usr/share/dbus-1/system.d")),
            ("packaging/dbus/*.service", Path("/usr/share/dbus-1/system-services")),
            ("packaging/sysusers.d/*", Path("/usr/lib/sysusers.d")),
            ("packaging/tmpfiles.d/*", Path("/usr/lib/tmpfiles.d")),
        ):
            copy(source, target)
        for settle in (
            "systemd-sysusers",
            "systemd-tmpfiles --create llamaswapd.conf",
            "systemctl reload dbus.service",
        ):
            subprocess.run(settle.split(), check=True)

    async def start(self, config: Json, *flags: str, settings: str = "") -> None:
        self.write(config)
        self.drop_in.parent.mkdir(parents=True, exist_ok=True)
        self.drop_in.write_text(f"[Service]\nEnvironment='LLAMASWAPD_FLAGS={' '.join(flags)}'\n{settings}\n")
        await self.systemctl("daemon-reload")
        if "llamaswapd.socket" in self.units_of_ours:
            await self.systemctl("start", "llamaswapd.socket")
        await self.systemctl("start", "llamaswapd.service")
        await self.answers()

    async def stop(self) -> None:
        # The launcher last: the daemon needs it to stop its models.
        for unit in sorted(self.units_of_ours, key=self.launcher.__eq__):
            await self.systemctl("stop", unit)
            with suppress(Failed):
                await self.systemctl("reset-failed", unit)
        for unit in await self.units():  # what a broken daemon left must not be met by the next
            await self.systemctl("kill", "--signal=KILL", unit)
            with suppress(Failed):
                await self.systemctl("stop", unit)
                await self.systemctl("reset-failed", unit)

    async def reload(self) -> None:
        await self.systemctl("reload", "llamaswapd.service")

    async def restart(self) -> None:
        await self.systemctl("restart", "llamaswapd.service")

    async def daemon_pid(self) -> int:
        return await self.main_pid("llamaswapd.service")

    async def kill_launcher(self) -> None:
        """Kill the launcher, if there is one at the moment, and return when it is no more."""
        if pid := await self.main_pid(self.launcher):
            with suppress(ProcessLookupError):  # it is restarted all the time
                os.kill(pid, signal.SIGKILL)
            await eventually(is_gone(pid), f"the launcher {pid} is gone")

    async def status_text(self) -> str:
        """Return what STATUS= said last."""
        return (await self.systemctl("show", "--property=StatusText", "--value", "llamaswapd.service")).strip()

    async def log(self) -> str:
        units = ("llamaswapd.service", self.launcher, "llamaswapd-keeper.service")
        logs = [last_lines(await output("journalctl", *JOURNAL, "-u", unit)) for unit in units]
        return "\n".join(filter(None, logs))

    async def systemctl(self, *arguments: str) -> str:
        return await answer_of("systemctl", *arguments)


class UserService(Service):
    """The unit of a user who lingers: one half, which is all there is."""

    launcher = ""
    unit_files = ROOT / "units" / "user"
    user = "ann"

    def __init__(self, name: str) -> None:
        done = subprocess.run(["useradd", "--create-home", self.user], capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr  # 9: there is one
        self.uid = int(subprocess.run(["id", "-u", self.user], capture_output=True, text=True, check=True).stdout)
        home = Path(f"/home/{self.user}")
        self.installed_in = home / ".config/systemd/user"
        self.drop_in = self.installed_in / "llamaswapd.service.d/faults.conf"
        self.state = home / ".local/state/llamaswapd"
        super().__init__(name)
        self.config_file = home / ".config/llamaswapd/config.yaml"
        self.config_mode = 0o644
        self.config_file.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["chown", "-R", f"{self.user}:", home], check=True)
        subprocess.run(["loginctl", "enable-linger", self.user], check=True)
        subprocess.run(["systemctl", "start", f"user@{self.uid}.service"], check=True)

    def _install(self) -> None:
        copy("units/user/llamaswapd*", self.installed_in)

    async def log(self) -> str:
        return last_lines(
            await output("journalctl", *JOURNAL, "_SYSTEMD_USER_UNIT=llamaswapd.service", f"_UID={self.uid}")
        )

    async def systemctl(self, *arguments: str) -> str:
        own = (f"XDG_RUNTIME_DIR=/run/user/{self.uid}", f"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{self.uid}/bus")
        become = ("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "env", *own)
        return await answer_of(*become, "systemctl", "--user", *arguments)


def copy(source: str, target: Path) -> None:
    """Copy the files of the tree that match into a directory, which is made."""
    target.mkdir(parents=True, exist_ok=True)
    for path in ROOT.glob(source):
        shutil.copy(path, target)


async def answer_of(*argv: str, env: Mapping[str, str] | None = None) -> str:
    """Return what systemctl prints; a question is repeated that systemd cannot answer as it executes itself anew."""
    is_question = {"show", "list-units"} & {*argv}
    for _ in range(REPEATS if is_question else 0):
        try:
            return await output(*argv, env=env)
        except Failed as failed:
            if not any(text in str(failed) for text in UNANSWERED):
                raise
            await asyncio.sleep(0.05)
    return await output(*argv, env=env)


async def output(*argv: str, env: Mapping[str, str] | None = None) -> str:
    """Return what a command prints; raises Failed."""
    process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    if process.returncode != 0:
        raise Failed(f"{' '.join(argv)}: {(err or out).decode(errors='replace').strip()}")
    return out.decode(errors="replace")


def last_lines(log: str) -> str:
    """Return the end of a log without the lines about requests."""
    return "\n".join([line for line in log.splitlines() if " HTTP/1.1" not in line][-TOLD_LINES:])


# ---- processes


def is_gone(pid: int) -> Callable[[], Any]:
    async def question() -> bool:
        return not Path(f"/proc/{pid}").exists() or is_zombie(pid)

    return question


def stands_still(pid: int) -> Callable[[], Any]:
    """Ask whether every thread of a process has stopped: a signal takes a moment to reach them all."""

    async def question() -> bool:
        return all(_state(task / "stat") == "T" for task in Path(f"/proc/{pid}/task").iterdir())

    return question


def is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return _state(Path(f"/proc/{pid}/stat")) == "Z"
    return True


def _state(stat: Path) -> str:
    """Return the state of a process or thread by one letter, proc_pid_stat(5)."""
    return stat.read_text().rpartition(") ")[2][:1]


def handles(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal: proc(5), SigCgt."""
    with suppress(OSError):
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
        masks = [int(row.split()[1], 16) for row in rows if row.startswith("SigCgt:")]
        return any(mask >> (number - 1) & 1 for mask in masks)
    return False


def variable(pid: int, name: str) -> str:
    """Return a variable that a process was started with, "" if there is no such variable or process."""
    values = [row.partition(b"=")[2] for row in environment(pid).split(b"\0") if row.startswith(f"{name}=".encode())]
    return values[0].decode() if values else ""


def unit_of(pid: int) -> str:
    """Return the model's unit in whose cgroup a process is, "" if in none."""
    with suppress(OSError):
        paths = [row for row in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if row.startswith("0::")]
        parts = paths[0].split("/") if paths else []
        return next((part for part in parts if part.startswith("llamaswapd-") and part.endswith(".service")), "")
    return ""
