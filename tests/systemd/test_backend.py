"""Models become units and go again, in a private manager."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llamaswapd.config.fingerprint import fingerprint
from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import BusLost, StartError, UnitError
from llamaswapd.systemd import backend as module
from llamaswapd.systemd import program
from llamaswapd.systemd.backend import SystemdBackend
from llamaswapd.systemd.bus import Call, Refused
from llamaswapd.systemd.journal import Journal
from llamaswapd.systemd.manager import Manager
from llamaswapd.systemd.unit import UNLIMITED_GRACE_S, Host, unit_name
from llamaswapd.systemd.watched import Watch

pytestmark = pytest.mark.private

Connect = Callable[[str], AbstractAsyncContextManager[SystemdBackend]]


def host(manager: Manager, instance: str) -> Host:
    return Host(manager.version, os.getcwd(), instance, find=lambda name: program.find(name, os.getcwd()))


@pytest.fixture
def connect(private: Any) -> Connect:
    """A daemon's backend, by instance; it stops what it ran when it leaves."""

    @asynccontextmanager
    async def connect(instance: str) -> AsyncIterator[SystemdBackend]:
        manager = await Manager.connect("private", private.bus_address)
        journal = Journal("private", instance, private.journal_dir)
        backend = SystemdBackend(manager, host(manager, instance), private.cgroup_root, journal)
        yield backend
        await clear(backend)
        await manager.close()

    return connect


async def clear(backend: SystemdBackend) -> list[str]:
    """Stop every unit of the instance; return their names."""
    found = await backend.find()
    await asyncio.gather(*(each.unit.stop(each.grace_s) for each in found))
    return sorted(each.unit.name for each in found)


@pytest.fixture
async def backend(connect: Connect) -> AsyncIterator[SystemdBackend]:
    async with connect("t") as backend:
        yield backend


def model(cmd: str = "sleep 600", **values: Any) -> ModelConfig:
    defaults = {"id": "m", "proxy": "http://192.0.2.1:9", "unload_timeout": 1, "health_check_timeout": 20}
    made = ModelConfig(**{**defaults, "cmd": cmd, **values})
    return made.having(fingerprint=fingerprint(made))


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def shell(script: str, *arguments: str) -> str:
    return shlex.join(["/bin/sh", "-c", script, *arguments])


async def test_a_model_becomes_a_unit_of_its_name(backend: SystemdBackend) -> None:
    unit = await backend.start(model())
    assert unit.name == "llamaswapd-t-model-m.service"
    assert is_alive(unit.pid)


async def test_arguments_arrive_as_they_were_written(backend: SystemdBackend, tmp_path: Path) -> None:
    arguments = ["$HOME", "${PATH}", "$$", "%h", "%%", "a b", 'quo"te', "back\\slash", "modèle 模型", "", "*", ";"]
    os.mkfifo(tmp_path / "fifo")
    await backend.start(model(shell(f'printf "%s\\0" "$@" > {tmp_path}/fifo; sleep 600', "sh", *arguments)))
    arrived = await asyncio.to_thread((tmp_path / "fifo").read_text)
    assert arrived.split("\0")[:-1] == arguments


async def test_an_id_that_is_not_ascii_works(backend: SystemdBackend) -> None:
    unit = await backend.start(model(id="modèle/模型:7b"))
    assert unit.pid
    await unit.stop(20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cmd": " # nothing"}, "unable to get sanitized command: empty command"),
        ({"proxy": ""}, "upstream proxy missing"),
        ({"cmd": "nowhere-server -x"}, "failed to start command 'nowhere-server -x': executable file not found"),
    ],
)
async def test_what_cannot_be_started_is_refused_before(
    backend: SystemdBackend, values: dict[str, str], message: str
) -> None:
    with pytest.raises(StartError, match=re.escape(f"unspecific error: {message}")):
        await backend.start(model(**values))
    assert await clear(backend) == []


async def test_what_systemd_cannot_execute_is_explained_and_gone_again(backend: SystemdBackend, tmp_path: Path) -> None:
    (tmp_path / "server").write_text("#!/nowhere/interpreter\n")
    (tmp_path / "server").chmod(0o755)
    expected = f"failed to start command '{tmp_path}/server -x': exit status 203/EXEC (exit-code)"
    with pytest.raises(StartError, match=re.escape(expected)):
        await backend.start(model(f"{tmp_path}/server -x"))
    assert await clear(backend) == []


async def test_a_model_that_is_gone_at_once_says_so(backend: SystemdBackend) -> None:
    try:
        unit = await backend.start(model(shell("echo no weights; exit 3")))
    except StartError as error:  # whether systemd is that fast is a matter of luck
        assert "upstream command exited prematurely: exit status 3 (exit-code)" in str(error)  # noqa: PT017
    else:
        assert str(await unit.ended) == "exit status 3 (exit-code)"
        assert await unit.last_lines(5) == ["no weights"]


async def test_a_start_that_is_given_up_does_not_get_the_time_of_an_unload(
    backend: SystemdBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAILED_START_GRACE_S", 0.05)
    os.mkfifo(tmp_path / "fifo")
    deaf = shell("trap '' TERM; echo >$0; while :; do sleep 0.05; done", str(tmp_path / "fifo"))
    never_ready = model(deaf, unload_timeout=600, systemd={"Type": ("notify",)})
    starting = asyncio.create_task(backend.start(never_ready))
    await asyncio.to_thread((tmp_path / "fifo").read_text)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await clear(backend) == []


async def test_a_port_that_somebody_has_is_named_before_the_start(backend: SystemdBackend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        expected = rf"port {port} of proxy http://localhost:{port} is taken by process {os.getpid()} \(.*another port"
        with pytest.raises(StartError, match=expected):
            await backend.start(model(proxy=f"http://localhost:{port}", env=(f"PORT={port}",)))
    assert await clear(backend) == []


async def test_a_port_that_the_command_does_not_name_may_be_anybodys(backend: SystemdBackend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        unit = await backend.start(model(proxy=f"http://localhost:{listener.getsockname()[1]}"))
        assert not unit.ended.done()


async def test_a_running_leftover_of_the_same_name_is_replaced(backend: SystemdBackend) -> None:
    left = await backend.start(model())
    unit = await backend.start(model())
    assert left.ended.done()
    assert is_alive(unit.pid)


async def test_a_leftover_that_has_the_models_port_is_replaced(backend: SystemdBackend, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    listens = f"import socket; it = socket.create_server(('127.0.0.1', {port})); open('{tmp_path}/fifo', 'w').close()"
    holder = f'{sys.executable} -c "{listens}; it.accept()"'
    left = await backend.start(model(holder))
    await asyncio.to_thread((tmp_path / "fifo").read_text)
    unit = await backend.start(model(proxy=f"http://localhost:{port}", env=(f"PORT={port}",)))
    assert left.ended.done()
    assert is_alive(unit.pid)


async def test_a_failed_leftover_of_the_same_name_is_replaced(backend: SystemdBackend, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    held = model(shell(f"read line < {tmp_path}/fifo; exit 3"), systemd={"CollectMode": ("inactive",)})
    left = await backend.start(held)
    await asyncio.to_thread((tmp_path / "fifo").write_text, "go\n")
    await left.ended
    unit = await backend.start(model())
    assert not unit.ended.done()


async def test_only_units_of_the_instance_are_found(connect: Connect, backend: SystemdBackend) -> None:
    async with connect("tt") as neighbour:
        own = [await backend.start(model(id=name)) for name in ("a", "b")]
        await neighbour.start(model(id="a"))
        assert sorted(found.unit.name for found in await backend.find()) == [unit.name for unit in own]


@pytest.fixture
async def earlier(private: Any) -> AsyncIterator[SystemdBackend]:
    """The backend of a daemon that dies, sooner or later than the test's own comes."""
    manager = await Manager.connect("private", private.bus_address)
    journal = Journal("private", "t", private.journal_dir)
    yield SystemdBackend(manager, host(manager, "t"), private.cgroup_root, journal)
    await manager.close()


class TestFinding:
    async def test_a_unit_says_what_it_is(self, earlier: SystemdBackend, backend: SystemdBackend) -> None:
        started = model(id="modèle/模型", port=5800, systemd={"TimeoutStopSec": ("3s",)})
        before = time.monotonic()
        unit = await earlier.start(started)
        (found,) = await backend.find()
        assert (found.model_id, found.fingerprint, found.port) == ("modèle/模型", started.fingerprint, 5800)
        assert (found.unit.name, found.unit.pid, found.unit.invocation) == (unit.name, unit.pid, unit.invocation)
        assert found.is_up
        assert before <= found.began <= time.monotonic()
        assert found.grace_s == 3
        assert found.unit.resources().cpu_s is not None

    async def test_it_is_stopped_like_one_that_was_started(
        self, earlier: SystemdBackend, backend: SystemdBackend
    ) -> None:
        unit = await earlier.start(model())
        (found,) = await backend.find()
        await found.unit.stop(20)
        assert not is_alive(unit.pid)
        assert str(await found.unit.ended) == str(await unit.ended) == "killed by SIGTERM"
        assert await backend.find() == []

    async def test_its_end_is_noticed_with_its_cause(self, earlier: SystemdBackend, backend: SystemdBackend) -> None:
        await earlier.start(model())
        await earlier.manager.close()
        (found,) = await backend.find()
        os.kill(found.unit.pid, signal.SIGSEGV)
        assert "SIGSEGV" in str(await found.unit.ended)
        await found.unit.stop(20)
        assert await backend.find() == []

    async def test_one_that_is_loading_is_up_until_it_fails(
        self, earlier: SystemdBackend, backend: SystemdBackend, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        loading = shell("echo > $0; read line < $0; exit 3", str(tmp_path / "fifo"))
        starting = asyncio.create_task(earlier.start(model(loading, systemd={"Type": ("notify",)})))
        await asyncio.to_thread((tmp_path / "fifo").read_text)
        (found,) = await backend.find()
        assert found.is_up
        assert not found.unit.ended.done()
        await asyncio.to_thread((tmp_path / "fifo").write_text, "go\n")
        assert str(await found.unit.ended) == "exit status 3 (exit-code)"
        with pytest.raises(StartError):
            await starting

    async def test_one_that_has_failed_says_how(
        self, earlier: SystemdBackend, backend: SystemdBackend, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        held = model(shell(f"read line < {tmp_path}/fifo; exit 3"), systemd={"CollectMode": ("inactive",)})
        unit = await earlier.start(held)
        await asyncio.to_thread((tmp_path / "fifo").write_text, "go\n")
        await unit.ended
        (found,) = await backend.find()
        assert not found.is_up
        assert str(found.unit.ended.result()) == "exit status 3 (exit-code)"
        await found.unit.stop(20)
        assert await backend.find() == []

    async def test_one_that_is_being_stopped_is_not_up(
        self, earlier: SystemdBackend, backend: SystemdBackend, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        slow = f"trap 'echo > {tmp_path}/fifo; read line < {tmp_path}/fifo; exit' TERM; echo > {tmp_path}/fifo"
        unit = await earlier.start(model(shell(f"{slow}; while :; do sleep 0.05; done")))
        await asyncio.to_thread((tmp_path / "fifo").read_text)
        stopping = asyncio.create_task(unit.stop(20))
        await asyncio.to_thread((tmp_path / "fifo").read_text)
        (found,) = await backend.find()
        assert not found.is_up
        assert not found.unit.ended.done()
        await asyncio.to_thread((tmp_path / "fifo").write_text, "go\n")
        await stopping
        await found.unit.stop(20)

    async def test_one_that_ends_meanwhile_is_found_to_have_ended_or_not_at_all(
        self, earlier: SystemdBackend, backend: SystemdBackend
    ) -> None:
        for _ in range(20):
            unit = await earlier.start(model())
            finding = asyncio.ensure_future(backend.find())
            os.kill(unit.pid, signal.SIGKILL)
            for found in await finding:
                assert "SIGKILL" in str(await found.unit.ended)
                await found.unit.stop(20)
            await unit.stop(20)

    async def test_a_unit_made_by_hand_has_no_fingerprint(self, private: Any, backend: SystemdBackend) -> None:
        argv = (
            "systemd-run",
            "--user",
            "--quiet",
            "--collect",
            "-u",
            "llamaswapd-t-model-hand.service",
            "sleep",
            "600",
        )
        process = await asyncio.create_subprocess_exec(*argv, env={**os.environ, **private.environment})
        assert await process.wait() == 0
        (found,) = await backend.find()
        assert (found.model_id, found.fingerprint, found.port, found.is_up) == ("hand", "", None, True)

    async def test_one_without_a_time_limit_gets_one_for_a_stop(
        self, earlier: SystemdBackend, backend: SystemdBackend
    ) -> None:
        await earlier.start(model(systemd={"TimeoutStopSec": ("infinity",)}))
        (found,) = await backend.find()
        assert found.grace_s == UNLIMITED_GRACE_S

    @pytest.mark.parametrize("id_", ["m", "two words/and it's 100% 'odd\\"])
    async def test_one_whose_file_systemd_reads_anew_is_found(
        self, private: Any, earlier: SystemdBackend, backend: SystemdBackend, id_: str
    ) -> None:
        started = model(id=id_)
        unit = await earlier.start(started)
        process = await asyncio.create_subprocess_exec(
            "systemctl", "--user", "daemon-reload", env={**os.environ, **private.environment}
        )
        assert await process.wait() == 0
        (found,) = await backend.find()
        assert (found.model_id, found.is_up, found.unit.pid) == (id_, True, unit.pid)
        assert found.fingerprint == started.fingerprint


def properties(**others: Any) -> dict[str, Any]:
    """What systemd says of a unit that runs."""
    ordinary = {
        "ActiveState": "active",
        "LoadState": "loaded",
        "InvocationID": b"i" * 16,
        "Job": (0, "/"),
        "MainPID": 7,
        "ControlGroup": "",
        "LogExtraFields": [],
        "ExecMainStartTimestampMonotonic": 1_000_000,
        "InactiveExitTimestampMonotonic": 1_000_000,
        "TimeoutStopUSec": 5_000_000,
    }
    return {name: value for name, value in {**ordinary, **others}.items() if value is not None}


class Full:
    """A manager with units that are looked at only; what it says of each is given, or raised."""

    version = 257

    def __init__(self, units: dict[str, dict[str, Any] | Exception]) -> None:
        self.most = 0  # questions at a time
        self._asked = 0
        self._units = units

    async def list_units(self, pattern: str) -> list[str]:
        return [*self._units]

    async def watch(self, unit: str, path: str, changed: Callable[[dict[str, Any]], None]) -> Watch:
        return Watch(unit, path, changed)

    async def ref_unit(self, watch: Watch) -> None: ...

    def unref_unit(self, unit: str) -> None: ...

    async def look(self, watch: Watch) -> dict[str, Any]:
        self._asked += 1
        self.most = max(self.most, self._asked)
        await asyncio.sleep(0)
        self._asked -= 1
        answer = self._units[watch.unit]
        if isinstance(answer, Exception):
            raise answer
        watch.found(answer)
        return answer


def backend_on(manager: Any) -> SystemdBackend:
    return SystemdBackend(manager, host(manager, ""), Path("/nowhere"), Journal("system", ""))


class TestFindingMany:
    async def test_no_more_are_looked_at_together_than_a_bus_takes_questions(self) -> None:
        manager = Full({unit_name(str(number)): properties() for number in range(300)})
        found = await backend_on(manager).find()
        assert sorted(each.model_id for each in found) == sorted(map(str, range(300)))
        assert manager.most <= module.FIND_AT_ONCE

    @pytest.mark.parametrize(
        "odd",
        [
            Refused(Call("", "", "", "GetAll"), "org.freedesktop.DBus.Error.AccessDenied", "no"),
            UnitError("systemd did not answer GetAll within 25 s"),
            properties(TimeoutStopUSec=None),
            properties(LogExtraFields=["LLAMASWAP_PORT=5800"]),
            properties(LogExtraFields=[b"LLAMASWAP_PORT=" + b"9" * 5000]),
        ],
    )
    async def test_one_that_systemd_says_odd_things_of_is_named_and_left_out(
        self, odd: dict[str, Any] | Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        manager = Full({unit_name("a"): properties(), unit_name("odd"): odd, unit_name("z"): properties()})
        found = await backend_on(manager).find()
        assert [each.model_id for each in found] == ["a", "z"]
        assert unit_name("odd") in caplog.text

    async def test_a_bus_that_is_lost_is_not_the_units_fault(self) -> None:
        with pytest.raises(BusLost):
            await backend_on(Full({unit_name("a"): BusLost("closed")})).find()


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
async def test_models_start_and_stop_while_systemd_reads_its_files_anew(
    private: Any, backend: SystemdBackend, verb: str
) -> None:
    async def anew() -> None:
        for _ in range(10):
            argv = ("systemctl", "--user", verb)
            process = await asyncio.create_subprocess_exec(*argv, env={**os.environ, **private.environment})
            assert await process.wait() == 0

    reading = asyncio.create_task(anew())
    while not reading.done():
        unit = await backend.start(model())
        assert not unit.ended.done()
        await unit.stop(20)
    await reading


async def test_a_start_that_is_cancelled_while_leaving_goes_on_without_us(
    backend: SystemdBackend, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    loading = shell("echo > $0; exec sleep 600", str(tmp_path / "fifo"))
    starting = asyncio.create_task(backend.start(model(loading, systemd={"Type": ("notify",)})))
    await asyncio.to_thread((tmp_path / "fifo").read_text)
    backend.leave()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    (found,) = await backend.find()
    assert found.is_up


async def test_a_line_of_the_log_can_be_waited_for_and_read_again(backend: SystemdBackend) -> None:
    unit = await backend.start(model(shell("echo loading; echo listening on 5800; sleep 600")))
    assert await unit.wait_for_line(re.compile("listening")) == "listening on 5800"
    assert await unit.last_lines(5) == ["loading", "listening on 5800"]
