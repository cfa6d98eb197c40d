"""A private `systemd --user` for machines whose PID 1 is not systemd.

Containers, CI runners and WSL without systemd have no manager to run models. This one is started by the daemon and
belongs to it, with a dbus-daemon and a journald of its own, in its own cgroup, mount namespace and cgroup namespace, so
that nothing outside of `runtime_dir` and that cgroup changes. The cgroup comes first: a systemd that starts in the root
cgroup moves every process of the machine into its own `init.scope`.

The cgroup is also the handle on everything: a manager is alive while its cgroup is populated, and killing the cgroup
leaves nothing behind. A manager whose daemon was killed lives on, models and all, until the next start joins it.

    runtime_dir/              as seen inside: /run/user/UID
      cgroup                  the path of the manager's cgroup
      bus                     the socket of its bus
      journal/                inside also /run/log/journal
      units/ services/ bus.conf    what we give it
      output                  what it said before there was a journal
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import select
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from llamaswapd.errors import ManagerUnavailable
from llamaswapd.systemd.private_init import REPORT_FD, own_unit
from llamaswapd.systemd.unit import PER_UNIT

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 15.0
BUS_POLL_S = 0.01
SUN_PATH_MAX = 107  # unix(7), without the final NUL

SYSTEMD_DIRS = ("/usr/lib/systemd", "/lib/systemd")
PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")

# The only units that it loads, beside models and their drop-ins: no default.target or sockets.target, to which a
# machine's own user services are attached. systemd.special(7) has those that systemd itself asks for by name; it
# connects to the bus once dbus.service runs on dbus.socket. Bus and journal do not conflict with shutdown.target, nor
# does their slice: they stay to the end. However often they die, they come back: a service that has reached its start
# limit takes its socket with it, for good.
#
# The bus listens by itself, and dbus.socket is there for its name only. If systemd held the listening socket and some
# unit changed while the bus is dead and systemd does not know yet, it would connect, and wait 90 s for an answer of the
# service that it alone can start. So it is refused. Type=notify: systemd connects as soon as the service runs.
UNITS = {
    "llamaswapd.target": """[Unit]
Description=llamaswapd's private service manager
Requires=basic.target dbus.service systemd-journald.service
After=basic.target dbus.service systemd-journald.service
AllowIsolate=yes
""",
    # systemd gives inherited sockets to the units that are loaded when it begins: those that the root slice names.
    "-.slice.d/sockets.conf": """[Unit]
Wants=dbus.socket systemd-journald.socket
""",
    "basic.target": """[Unit]
Description=Basic system
""",
    "dbus.socket": """[Unit]
Description=Bus
DefaultDependencies=no
[Socket]
Slice=-.slice
ListenStream=%t/bus.socket
TriggerLimitIntervalSec=0
""",
    "dbus.service": """[Unit]
Description=Bus
DefaultDependencies=no
Requires=dbus.socket
StartLimitIntervalSec=0
[Service]
Slice=-.slice
Type=notify
ExecStart={dbus_daemon} --config-file=%t/bus.conf --nofork --nopidfile
Restart=always
RestartSec=0
""",
    "systemd-journald.socket": """[Unit]
Description=Journal
DefaultDependencies=no
[Socket]
Slice=-.slice
ListenStream=/run/systemd/journal/stdout
ListenDatagram=/run/systemd/journal/socket
ListenDatagram=/run/systemd/journal/dev-log
PassCredentials=yes
TriggerLimitIntervalSec=0
""",
    # Its own messages would go to the kernel's log, which is the host's.
    "systemd-journald.service": """[Unit]
Description=Journal
DefaultDependencies=no
Requires=systemd-journald.socket
StartLimitIntervalSec=0
[Service]
Slice=-.slice
Type=notify
ExecStart={journald}
Environment=SYSTEMD_LOG_TARGET=null
StandardOutput=null
Restart=always
RestartSec=0
FileDescriptorStoreMax=4224
""",
    "shutdown.target": """[Unit]
Description=Shutdown
DefaultDependencies=no
RefuseManualStart=yes
""",
    "exit.target": """[Unit]
Description=End of the manager
DefaultDependencies=no
Requires=systemd-exit.service
After=systemd-exit.service
""",
    "systemd-exit.service": """[Unit]
Description=End of the manager
DefaultDependencies=no
Requires=shutdown.target
After=shutdown.target
SuccessAction=exit-force
[Service]
Slice=-.slice
""",
    # A user manager gives its services a PATH of its own; and its own settings are not for models.
    "service.d/environment.conf": """[Service]
PassEnvironment=PATH
UnsetEnvironment=SYSTEMD_UNIT_PATH SYSTEMD_GENERATOR_PATH SYSTEMD_ENVIRONMENT_GENERATOR_PATH
""",
}

BUS_CONF = """<busconfig>
  <type>session</type>
  <listen>unix:path={bus}</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  <limit name="service_start_timeout">{timeout_ms}</limit>
  <limit name="max_match_rules_per_connection">50000</limit>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
"""

# With this a call to systemd waits in the bus until systemd has taken its name, instead of failing.
ACTIVATION = """[D-BUS Service]
Name=org.freedesktop.systemd1
Exec={true}
"""


@dataclass(frozen=True)
class Programs:
    """Where the programs are that a private manager consists of."""

    systemd: str
    journald: str
    dbus_daemon: str
    busctl: str
    true: str

    @classmethod
    def find(cls) -> Programs:
        return cls(
            systemd=found("systemd", SYSTEMD_DIRS, "systemd"),
            journald=found("systemd-journald", SYSTEMD_DIRS, "systemd"),
            dbus_daemon=found("dbus-daemon", PATH, "dbus-daemon"),
            busctl=found("busctl", PATH, "systemd"),
            true=found("true", PATH, "coreutils"),
        )


class PrivateManager:
    """A running private manager. `start` makes or joins one; it runs until `stop`, whatever becomes of the daemon."""

    def __init__(self, runtime_dir: Path, cgroup_root: Path) -> None:
        self.runtime_dir = runtime_dir
        self.cgroup_root = cgroup_root  # a unit's ControlGroup is a path below it
        self._pid = 0  # of our child, which the manager is unless it was joined

    @property
    def bus_address(self) -> str:
        return f"unix:path={self.runtime_dir}/bus"

    @property
    def journal_dir(self) -> Path:
        return self.runtime_dir / "journal"

    @property
    def environment(self) -> dict[str, str]:
        """What `systemctl --user` and its like need to reach this manager."""
        return {"XDG_RUNTIME_DIR": str(self.runtime_dir), "DBUS_SESSION_BUS_ADDRESS": self.bus_address}

    @property
    def _own_scope(self) -> Path:
        """The cgroup of systemd itself."""
        return self.cgroup_root / own_unit() / "init.scope"

    def is_running(self) -> bool:
        """Say whether its systemd lives. Not asked on the bus, which may be away, or outlive a systemd that crashed."""
        try:
            return is_populated(self._own_scope)
        except OSError:  # removed
            return False

    @classmethod
    async def start(cls, runtime_dir: Path, environ: Mapping[str, str] = os.environ) -> PrivateManager:
        """Return a manager that answers on its bus: the one that runs in `runtime_dir`, or else a new one.

        `runtime_dir`, an absolute path, belongs to the manager: it is made (its parent too), emptied and removed. Only
        one daemon may use it at a time. Raises ManagerUnavailable, naming what is missing.
        """
        programs = Programs.find()
        if len(os.fsencode(runtime_dir / "bus")) > SUN_PATH_MAX:
            raise ManagerUnavailable(
                f"{runtime_dir} is too long a path for a socket; choose a shorter runtime directory"
            )
        if left := cls._left_in(runtime_dir):
            if left.is_running() and await left._answers():
                log.info("joined the private manager in %s", runtime_dir)
                return left
            log.warning("the private manager in %s does not answer, replacing it", runtime_dir)
            await left._remove()
        return await cls._start_new(runtime_dir, programs, environ)

    @classmethod
    def _left_in(cls, runtime_dir: Path) -> PrivateManager | None:
        """Find what an earlier daemon left in `runtime_dir`, running or not."""
        try:
            return cls(runtime_dir, Path((runtime_dir / "cgroup").read_text()))
        except FileNotFoundError:
            return None

    @classmethod
    async def _start_new(cls, runtime_dir: Path, programs: Programs, environ: Mapping[str, str]) -> PrivateManager:
        manager = cls(runtime_dir, own_cgroup() / f"llamaswapd-{secrets.token_hex(6)}")
        try:
            with translated():
                manager._furnish(programs)
                await asyncio.to_thread(became_systemd, manager._spawn(programs, environ))
            if not await manager._answers():
                raise ManagerUnavailable(f"the private systemd manager does not answer: {manager._output()}")
        except BaseException:
            await manager._remove()
            raise
        log.info("started %s", manager)
        return manager

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop every unit, then the manager; kill what is left after `timeout_s`. Leaves nothing behind."""
        exit_target = ("StartUnit", "ss", "exit.target", "replace-irreversibly")
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self.is_running() and await self._call("org.freedesktop.systemd1.Manager", *exit_target):
                    await emptied(self._own_scope)
        await self._remove()

    def __repr__(self) -> str:
        return f"<PrivateManager in {self.runtime_dir}, cgroup {self.cgroup_root}>"

    def _furnish(self, programs: Programs) -> None:
        """Make the runtime directory and the cgroups. What names the cgroup is written before the cgroup is made."""
        shutil.rmtree(self.runtime_dir, ignore_errors=True)
        self.runtime_dir.parent.mkdir(parents=True, exist_ok=True)
        self.runtime_dir.mkdir(mode=0o700)
        self.journal_dir.mkdir()
        inside, timeout_ms = f"/run/user/{os.getuid()}", int(START_TIMEOUT_S * 1000)
        files = {
            "cgroup": str(self.cgroup_root),
            "bus.conf": BUS_CONF.format(bus=f"{inside}/bus", services=f"{inside}/services", timeout_ms=timeout_ms),
            "services/org.freedesktop.systemd1.service": ACTIVATION.format(**asdict(programs)),
            **{f"units/{name}": text.format(**asdict(programs)) for name, text in UNITS.items()},
        }
        for name, text in files.items():
            path = self.runtime_dir / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        (self.cgroup_root / own_unit()).mkdir(parents=True)

    def _spawn(self, programs: Programs, environ: Mapping[str, str]) -> int:
        """Start the process that becomes systemd; return the pipe by which it reports.

        It is no child of asyncio's or subprocess's, because it outlives the loop and the daemon, and leads a session of
        its own, so that no Ctrl-C reaches it.
        """
        script = Path(__file__).with_name("private_init.py")
        argv = [sys.executable, "-I", "-S", str(script), str(self.runtime_dir), str(self.cgroup_root), programs.systemd]
        inherited = {name: value for name, value in environ.items() if name not in PER_UNIT}  # models inherit it, too
        reading, writing = os.pipe()
        files = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self.runtime_dir / "output", os.O_WRONLY | os.O_CREAT, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, writing, REPORT_FD),
        ]
        try:
            self._pid = os.posix_spawn(sys.executable, argv, inherited, file_actions=files, setsid=True)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return reading

    async def _answers(self) -> bool:
        """Wait for an answer of systemd on the bus, which may be starting; False when it takes too long or has died."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT_S):
                while not await self._call("org.freedesktop.DBus.Peer", "Ping"):
                    if not is_populated(self.cgroup_root):
                        return False
                    await asyncio.sleep(BUS_POLL_S)
                return True
        return False

    async def _call(self, interface: str, method: str, *arguments: str) -> bool:
        """Call a method of systemd's main object; return whether it was answered without an error."""
        busctl = await asyncio.create_subprocess_exec(
            Programs.find().busctl,
            f"--address={self.bus_address}",
            "call",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            interface,
            method,
            *arguments,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await busctl.wait() == 0
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):  # uvloop's, when it has just ended
                busctl.kill()
            await busctl.wait()
            raise

    def _output(self) -> str:
        return (self.runtime_dir / "output").read_text(errors="replace").strip() or "it said nothing"

    async def _remove(self) -> None:
        """Kill everything in the cgroup, then remove the cgroup and the runtime directory."""
        self._collect()
        if self.cgroup_root.exists():
            (self.cgroup_root / "cgroup.kill").write_text("1")
            await emptied(self.cgroup_root)
            for cgroup, _, _ in os.walk(self.cgroup_root, topdown=False):
                os.rmdir(cgroup)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)

    def _collect(self) -> None:
        """Kill and reap our child: it may not have reached the cgroup yet, and a zombie has left it."""
        if not self._pid:
            return
        with suppress(ChildProcessError):
            if os.waitpid(self._pid, os.WNOHANG) == (0, 0):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
        self._pid = 0


def found(program: str, folders: Sequence[str], package: str) -> str:
    path = shutil.which(program, path=os.pathsep.join(folders))
    if path is None:
        raise ManagerUnavailable(
            f"a private systemd manager needs {program}, which is not installed; install {package}"
        )
    return path


def own_cgroup() -> Path:
    """Return the folder of this process's cgroup, or the topmost that can be seen if that one is out of sight."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, source = line.partition(" - ")
        if source.startswith("cgroup2 "):
            root, mountpoint = fields.split()[3:5]
            break
    else:
        raise ManagerUnavailable(
            "a private systemd manager needs cgroup v2; mount it: mount -t cgroup2 none /sys/fs/cgroup"
        )
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    below = Path(own).relative_to(root) if Path(own).is_relative_to(root) else Path()
    return Path(mountpoint) / below


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the kernel refuses into ManagerUnavailable, with what would help against the usual reasons."""
    try:
        yield
    except OSError as error:
        remedy = {
            errno.EROFS: "; mount it writable, or give the container --privileged",
            errno.EACCES: "; run as root, or with a user manager",
            errno.EPERM: "; run as root with CAP_SYS_ADMIN, in a container with --privileged",
        }.get(error.errno or 0, "")
        what = f"{error.filename}: {error.strerror}{remedy}"
        raise ManagerUnavailable(f"no private systemd manager can run here: {what}") from error


def became_systemd(report: int) -> None:
    """Wait until the spawned process has executed systemd; raise the OSError that it reports instead."""
    with open(report) as pipe:
        if failure := pipe.read():
            number, _, what = failure.partition(" ")
            raise OSError(int(number), os.strerror(int(number)), what)


def is_populated(cgroup: Path) -> bool:
    """Return whether there is a process in the cgroup or in those below it (cgroups(7), cgroup.events)."""
    return "populated 1" in (cgroup / "cgroup.events").read_text()


async def emptied(cgroup: Path) -> None:
    """Return when `is_populated` is no longer true."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    events = os.open(cgroup / "cgroup.events", os.O_RDONLY)
    with select.epoll() as changes:
        changes.register(events, select.EPOLLPRI)
        loop.add_reader(changes.fileno(), changed.set)
        try:
            # A change counts as seen once the file has been read, so none can fall between read and wait.
            while b"populated 1" in os.pread(events, 4096, 0):
                changed.clear()
                await changed.wait()
        finally:
            loop.remove_reader(changes.fileno())
            os.close(events)
