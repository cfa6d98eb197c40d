"""A private manager: it runs, it is alone, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.errors import ManagerUnavailable
from llamaswapd.systemd.private import PrivateManager, emptied

pytestmark = pytest.mark.private

# A daemon: it starts or joins the manager in argv[1], says its cgroup or why not, and waits.
DAEMON = """
import asyncio, sys
from pathlib import Path
from llamaswapd.errors import ManagerUnavailable
from llamaswapd.systemd.private import PrivateManager

async def main():
    manager = await PrivateManager.start(Path(sys.argv[1]))
    print(manager.cgroup_root, flush=True)
    sys.stdin.read()
    await manager.stop()

try:
    asyncio.run(main())
except ManagerUnavailable as error:
    print(error)
"""


@pytest.fixture
def folder(private: PrivateManager) -> Iterator[Path]:
    """A short path for a manager of the test's own; skips where none can run."""
    made = Path(tempfile.mkdtemp(prefix="llamaswapd-"))
    yield made / "m"
    shutil.rmtree(made)


@asynccontextmanager
async def started(folder: Path, **environ: str) -> AsyncIterator[PrivateManager]:
    manager = await PrivateManager.start(folder, {**os.environ, **environ})
    try:
        yield manager
    finally:
        await manager.stop()


async def output(*argv: str, manager: PrivateManager | None = None) -> str:
    """Run a program, near a manager if one is given; return what it printed."""
    environ = {**os.environ, **(manager.environment if manager else {})}
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, env=environ)
    printed, _ = await process.communicate()
    return printed.decode()


async def run_unit(manager: PrivateManager, name: str, *command: str) -> str:
    """Start a unit whose program is executed; return its cgroup's path on the host."""
    await output(
        "systemd-run", "--user", "--quiet", "--collect", "--property=Type=exec", "-u", name, *command, manager=manager
    )
    return await output("systemctl", "--user", "show", "--value", "-p", "ControlGroup", name, manager=manager)


async def state(manager: PrivateManager) -> str:
    shown = await output("systemctl", "--user", "show", "--value", "-p", "SystemState", manager=manager)
    return shown.strip()


async def daemon(folder: Path, *before: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a process with a private manager; return it and its first line. `before` is a command that executes it."""
    argv = [*before, sys.executable, "-c", DAEMON, str(folder)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)
    assert process.stdout
    return process, (await process.stdout.readline()).decode().strip()


def world() -> dict[str, str]:
    """What must stay as it is: the mounts here, and the cgroups of everybody who is in no private manager."""
    mounts = Path("/proc/self/mountinfo").read_text()
    own, parent, init = (Path(f"/proc/{pid}/cgroup").read_text() for pid in ("self", os.getppid(), 1))
    run = "\n".join(sorted(entry.name for entry in Path("/run").iterdir()))
    return {"mounts": mounts, "run": run, "own": own, "parent": parent, "init": init}


def processes(cgroup: Path) -> list[int]:
    return [int(pid) for procs in cgroup.rglob("cgroup.procs") for pid in procs.read_text().split()]


async def test_a_unit_runs_below_the_cgroup_root(private: PrivateManager) -> None:
    cgroup = await run_unit(private, "below.service", "sleep", "infinity")
    below = private.cgroup_root / cgroup.strip().lstrip("/")
    assert [Path(f"/proc/{pid}/comm").read_text() for pid in processes(below)] == ["sleep\n"]
    await output("systemctl", "--user", "stop", "below.service", manager=private)
    assert not below.exists()


async def test_a_bus_that_dies_comes_back_however_often(folder: Path) -> None:
    async with started(folder) as manager:
        for _ in range(8):  # the default limit is 5 starts in 10 s
            bus = await output(
                "systemctl", "--user", "show", "--value", "-p", "MainPID", "dbus.service", manager=manager
            )
            os.kill(int(bus), signal.SIGKILL)
            assert await manager._answers()
        assert (await PrivateManager.start(folder)).cgroup_root == manager.cgroup_root  # joined, not replaced


class JustEnded:
    """A process as uvloop shows it that has ended a moment ago."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self._noticed = asyncio.Event()

    async def wait(self) -> int:
        self.waiting.set()
        await self._noticed.wait()
        return 0

    def kill(self) -> None:
        self._noticed.set()
        raise ProcessLookupError


async def test_a_question_is_given_up_though_it_was_just_answered(
    private: PrivateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    busctl = JustEnded()

    async def spawn(*argv: str, **options: Any) -> JustEnded:
        return busctl

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    asking = asyncio.create_task(private._answers())
    await busctl.waiting.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_nothing_outside_changes(folder: Path) -> None:
    before = world()
    async with started(folder) as manager:
        await run_unit(manager, "m.service", "sleep", "infinity")
        assert world() == before
    assert world() == before


async def test_stop_leaves_nothing_behind_whatever_the_units_did(folder: Path) -> None:
    async with started(folder) as manager:
        fork = "(setsid sh -c 'trap \"\" TERM; sleep 1000 & wait' &) ; exec sleep 1000"
        await run_unit(manager, "m.service", "sh", "-c", fork)
        await run_unit(manager, "deaf.service", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        left = processes(manager.cgroup_root)
        await manager.stop(timeout_s=0.1)
        assert not manager.cgroup_root.exists()
        assert not folder.exists()
        assert not [pid for pid in left if Path(f"/proc/{pid}").exists() and "State:\tZ" not in status(pid)]


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "State:\tZ"


async def test_units_are_asked_to_stop_before_the_manager_ends(folder: Path) -> None:
    said = folder.with_name("said")
    polite = f"trap 'echo bye >{said}; exit' TERM; systemd-notify --ready; while :; do sleep 0.01; done"
    async with started(folder) as manager:
        await run_unit(
            manager, "m.service", "--property=Type=notify", "--property=NotifyAccess=all", "sh", "-c", polite
        )
    assert said.read_text() == "bye\n"


async def test_stop_may_be_called_twice(folder: Path) -> None:
    async with started(folder) as manager:
        await manager.stop()


async def test_only_our_units_are_known(private: PrivateManager) -> None:
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    listed = json.loads(
        await output("busctl", "--user", "--json=short", "call", *manager, "ListUnitFiles", manager=private)
    )["data"][0]
    files = {Path(path).name for path, _ in listed}
    own = {path.name for path in Path("/etc/systemd/user").glob("*.*") if path.is_file()}
    ours = {"basic.target", "dbus.service", "dbus.socket", "exit.target", "llamaswapd.target", "shutdown.target"}
    journal = {"systemd-exit.service", "systemd-journald.service", "systemd-journald.socket"}
    assert files - own == ours | journal
    assert await state(private) == "running"


async def test_models_inherit_the_environment_but_not_what_is_the_daemons_own(folder: Path) -> None:
    given = {
        "PATH": f"/opt/own:{os.environ['PATH']}",
        "OWN": "a b",
        "NOTIFY_SOCKET": "@x",
        "LISTEN_FDS": "1",
        "WATCHDOG_USEC": "1",
    }
    printed = folder.with_name("environment")
    async with started(folder, **given) as manager:
        await run_unit(manager, "env.service", "--wait", "sh", "-c", f"env >{printed}")
    text = printed.read_text()
    environ = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert environ["PATH"] == given["PATH"]
    assert environ["OWN"] == "a b"
    assert not environ.keys() & {"NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "SYSTEMD_UNIT_PATH"}


async def test_a_manager_whose_daemon_was_killed_is_joined_with_its_units(folder: Path) -> None:
    killed, cgroup = await daemon(folder)
    manager = await PrivateManager.start(folder)
    await run_unit(manager, "m.service", "sleep", "infinity")
    killed.kill()
    await killed.wait()
    async with started(folder) as joined:
        assert str(joined.cgroup_root) == cgroup
        assert await output("systemctl", "--user", "is-active", "m.service", manager=joined) == "active\n"
    assert not Path(cgroup).exists()


async def test_a_manager_that_does_not_answer_is_replaced(folder: Path) -> None:
    async with started(folder) as broken:
        # Beside it there may be a child that it is about to execute.
        bus = min(processes(broken.cgroup_root / "user.slice/user-0.slice/user@0.service/dbus.service"))
        (folder / "bus").unlink()
        os.kill(bus, signal.SIGSTOP)
        async with started(folder) as manager:
            assert not broken.cgroup_root.exists()
            assert await state(manager) in ("starting", "running")


async def test_a_manager_that_crashed_is_replaced(folder: Path) -> None:
    async with started(folder) as crashed:
        own = crashed.cgroup_root / "user.slice/user-0.slice/user@0.service/init.scope"
        for pid in processes(own):
            os.kill(pid, signal.SIGKILL)
        await emptied(own)
        async with started(folder) as manager:
            assert not crashed.cgroup_root.exists()
            assert await state(manager) in ("starting", "running")


async def test_a_runtime_directory_of_before_a_reboot_is_no_obstacle(folder: Path) -> None:
    folder.mkdir()
    (folder / "cgroup").write_text("/sys/fs/cgroup/llamaswapd-gone")
    (folder / "bus").touch()
    async with started(folder) as manager:
        assert await state(manager) in ("starting", "running")


async def test_a_runtime_directory_below_run_is_seen_under_both_names(folder: Path) -> None:
    below = Path(tempfile.mkdtemp(prefix="llamaswapd-", dir="/run"))
    try:
        async with started(below / "m") as manager:
            await run_unit(manager, "m.service", "--wait", "cp", f"/run/user/{os.getuid()}/cgroup", f"{below}/m/copy")
            assert (below / "m/copy").read_text() == str(manager.cgroup_root)
    finally:
        below.rmdir()


async def test_two_managers_do_not_meet(folder: Path, private: PrivateManager) -> None:
    async with started(folder) as manager:
        await run_unit(manager, "m.service", "sleep", "infinity")
        assert await output("systemctl", "--user", "is-active", "m.service", manager=private) == "inactive\n"
    assert await state(private) == "running"


@pytest.mark.skipif(not shutil.which("mount"), reason="there is no mount program to hide /etc/machine-id with")
@pytest.mark.parametrize("content", ["", "uninitialized\n"])
async def test_a_missing_machine_id_is_made_up_for(folder: Path, content: str) -> None:
    empty = folder.with_name("machine-id")
    empty.write_text(content)
    hide = ("unshare", "--mount", "sh", "-c", f'mount --bind {empty} /etc/machine-id && exec "$0" "$@"')
    process, _ = await daemon(folder, *hide)
    printed = folder.with_name("printed")
    async with started(folder) as joined:
        await run_unit(joined, "m.service", "--wait", "sh", "-c", f"cp /etc/machine-id {printed}")
    assert re.fullmatch(r"[0-9a-f]{32}\n", printed.read_text())
    await process.communicate(b"")


async def test_without_capabilities_the_error_names_the_remedy_and_nothing_is_left(folder: Path) -> None:
    before = sorted(Path("/sys/fs/cgroup").rglob("llamaswapd-*"))
    process, said = await daemon(folder, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    await process.communicate(b"")
    assert said.startswith(
        "no private systemd manager can run here: unshare: Operation not permitted; run as root with"
    )
    assert not folder.exists()
    assert sorted(Path("/sys/fs/cgroup").rglob("llamaswapd-*")) == before


async def test_too_long_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManagerUnavailable, match="too long a path for a socket; choose a shorter"):
        await PrivateManager.start(tmp_path / ("x" * 100))


async def test_cancelling_a_start_leaves_nothing(folder: Path) -> None:
    before = set(Path("/sys/fs/cgroup").rglob("llamaswapd-*"))
    for turns in range(1, 12):
        starting = asyncio.create_task(PrivateManager.start(folder))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not folder.exists()
    assert set(Path("/sys/fs/cgroup").rglob("llamaswapd-*")) == before
