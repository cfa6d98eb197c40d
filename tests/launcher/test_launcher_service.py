"""The launcher on a bus, and the front half's end of it: a private manager's bus stands in for the system's."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from llamaswapd.config.schema import Config, ModelConfig
from llamaswapd.errors import ConfigError, ManagerUnavailable, NotStarted, UnitError
from llamaswapd.launcher.orders import Orders
from llamaswapd.launcher.secrets import Secrets
from llamaswapd.launcher.service import Service, run
from llamaswapd.systemd import delegation
from llamaswapd.systemd.backend import DelegatingBackend
from llamaswapd.systemd.bus import Bus, Call, Refused
from llamaswapd.systemd.delegation import DelegatingManager
from llamaswapd.systemd.journal import Journal
from llamaswapd.systemd.manager import Manager
from llamaswapd.systemd.unit import Host

pytestmark = pytest.mark.private

LONG = "a model with quite a name " + 200 * "x"
MODELS: Mapping[str, Any] = {
    "a": {"cmd": "sleep 600"},
    "b": {"cmd": "sleep 600"},
    LONG: {"cmd": "sleep 600"},
    "nowhere": {"cmd": "/nowhere/server"},
    "odd": {"cmd": "sleep 600", "systemd": {"Requires": "nowhere.service"}},
}


class Launchers:
    """One launcher after the other."""

    def __init__(self, manager: Manager, address: str, folder: Path) -> None:
        self._manager = manager
        self._address = address
        self._secrets = Secrets(folder)
        self.file = folder / "config.yaml"
        self.running: asyncio.Task[None] | None = None

    def write(self, **models: Any) -> None:
        defaults = {"proxy": "http://localhost:9", "unloadTimeout": 1}
        models = {id_: defaults | values for id_, values in models.items()}
        self.file.write_text(json.dumps({"systemd": {"User": "root"}, "models": models}))
        self.file.chmod(0o600)

    def orders(self) -> Orders:
        host = Host(self._manager.version, "/", find=lambda name: name if "/" in name else f"/bin/{name}")
        return Orders(self._manager, host, self._secrets, [self.file], None, os.geteuid(), held_s=0.0)

    def start(self, orders: Any = None, **options: Any) -> None:
        service = Service(orders or self.orders(), set(), **options)
        self.running = asyncio.create_task(service.run(self._address), name="launcher")

    async def end(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.wait([self.running])


@pytest.fixture
async def launchers(private: Any, tmp_path: Path) -> AsyncIterator[Launchers]:
    manager = await Manager.connect("private", private.bus_address)
    launchers = Launchers(manager, private.bus_address, tmp_path)
    (tmp_path / "unexecutable").write_text("#!/nowhere/interpreter")
    (tmp_path / "unexecutable").chmod(0o755)
    launchers.write(**MODELS, unexecutable={"cmd": str(tmp_path / "unexecutable")})
    yield launchers
    await launchers.end()
    await manager.close()


@pytest.fixture
async def front(launchers: Launchers, private: Any) -> AsyncIterator[DelegatingManager]:
    launchers.start()
    manager = await DelegatingManager.connect("private", private.bus_address)
    await available(private.bus_address)
    yield manager
    await manager.close()


@pytest.fixture
async def backend(front: DelegatingManager, private: Any) -> AsyncIterator[DelegatingBackend]:
    backend = DelegatingBackend(front, private.cgroup_root, Journal("private", "", private.journal_dir))
    yield backend
    await asyncio.gather(*(found.unit.stop(1) for found in await backend.find()))


async def available(address: str) -> None:
    """Wait until there is a launcher."""
    heard = asyncio.Event()
    bus = await Bus.open(address, lambda member, path, body: heard.set() if body[0] == delegation.NAME else None)
    rule = f"type='signal',member='NameOwnerChanged',arg0='{delegation.NAME}'"
    await bus.call(bus_call("AddMatch", "s", rule))
    if not (await bus.call(bus_call("NameHasOwner", "s", delegation.NAME)))[0]:
        await heard.wait()
    await bus.close()


def bus_call(member: str, signature: str, *body: object) -> Call:
    return Call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", member, signature, body)


async def models(front: DelegatingManager) -> Mapping[str, ModelConfig]:
    text, _ = await front.load({})
    return Config(**json.loads(text)).models


class TestTheFrontHalf:
    async def test_has_models_started_and_stopped(self, front: DelegatingManager, backend: DelegatingBackend) -> None:
        model = (await models(front))["a"]
        unit = await backend.start(model)
        assert Path(f"/proc/{unit.pid}").exists()
        assert unit.resources().cpu_s is not None
        (found,) = await backend.find()
        assert (found.model_id, found.fingerprint) == ("a", model.fingerprint)
        await unit.stop(5)
        assert str(await unit.ended) == "killed by SIGTERM"
        assert await backend.find() == []

    async def test_gives_a_model_its_time_to_stop_however_long_the_launcher_takes_to_come(
        self, launchers: Launchers, front: DelegatingManager, backend: DelegatingBackend, private: Any
    ) -> None:
        unit = await backend.start((await models(front))["a"])
        await launchers.end()
        orders, stop = launchers.orders(), launchers.orders().stop

        async def come_late(model_id: str) -> str:
            await asyncio.sleep(0.3)
            return await stop(model_id)

        orders.stop = come_late  # type: ignore[method-assign]
        launchers.start(orders)
        await available(private.bus_address)
        await unit.stop(0.1)
        assert str(await unit.ended) == "killed by SIGTERM"

    async def test_gives_a_model_its_time_to_start_however_long_the_launcher_takes_to_come(
        self, launchers: Launchers, front: DelegatingManager, backend: DelegatingBackend, private: Any
    ) -> None:
        model = (await models(front))["a"].having(health_check_timeout=1)
        await launchers.end()
        came, orders, start = asyncio.Event(), launchers.orders(), launchers.orders().start

        async def come_late(*order: Any) -> str:
            await came.wait()
            return await start(*order)

        orders.start = come_late  # type: ignore[method-assign]
        launchers.start(orders)
        await available(private.bus_address)
        starting = asyncio.create_task(backend.start(model))
        await asyncio.wait([starting], timeout=1.1)
        assert not starting.done()
        came.set()
        assert (await starting).pid

    async def test_has_a_leftover_replaced(self, front: DelegatingManager, backend: DelegatingBackend) -> None:
        model = (await models(front))["a"]
        left = await backend.start(model)
        unit = await backend.start(model)
        assert left.ended.done()
        assert not unit.ended.done()

    async def test_stops_what_another_started_under_a_name_that_was_cut(
        self, front: DelegatingManager, backend: DelegatingBackend, private: Any
    ) -> None:
        model = (await models(front))[LONG]
        unit = await backend.start(model)
        other = await DelegatingManager.connect("private", private.bus_address)
        (found,) = await DelegatingBackend(other, private.cgroup_root, Journal("private", "")).find()
        assert found.model_id == LONG
        await found.unit.stop(5)
        await unit.ended
        await other.close()

    @pytest.mark.parametrize(
        ("model", "error", "message"),
        [
            (
                "nowhere",
                NotStarted,
                "^unspecific error: failed to start command '/nowhere/server': no such file or dir",
            ),
            ("unexecutable", NotStarted, r"failed to start command '\S*unexecutable': exit status 203/EXEC"),
            ("odd", Refused, r"^systemd refused StartTransientUnit llamaswapd-model-odd\.service: .*NoSuchUnit"),
        ],
    )
    async def test_is_told_what_a_direct_manager_would_have_said(
        self, front: DelegatingManager, backend: DelegatingBackend, model: str, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            await backend.start((await models(front))[model])
        assert await backend.find() == []

    async def test_is_told_that_a_model_has_changed(
        self, launchers: Launchers, front: DelegatingManager, backend: DelegatingBackend, private: Any
    ) -> None:
        before = (await models(front))["a"]
        launchers.write(a={"cmd": "sleep 601"})
        await front.load({})
        with pytest.raises(NotStarted, match='model "a" has changed in the configuration; reload llamaswapd'):
            await backend.start(before)
        launchers.write(b={"cmd": "sleep 601"})
        await front.load({})
        with pytest.raises(NotStarted, match='model "a" is not in the configuration any more'):
            await backend.start(before)

    async def test_is_told_every_problem_of_the_files(self, launchers: Launchers, front: DelegatingManager) -> None:
        launchers.write(a={"ttl": "soon", "cmd": "x"}, b={"cmd": 5, "aliases": 7})
        with pytest.raises(ConfigError) as caught:
            await front.load({})
        assert [problem.path for problem in caught.value.problems] == ["models.a.ttl", "models.b.aliases"]
        assert caught.value.where == f"{launchers.file}: models.a.ttl"

    async def test_is_told_what_is_odd_about_the_files(self, launchers: Launchers, front: DelegatingManager) -> None:
        launchers.write(a={"cmd": "x", "tll": 5})
        _, warnings = await front.load({})
        assert warnings == [f'config {launchers.file}: models.a.tll: unknown key, ignored; did you mean "ttl"?']

    async def test_without_a_launcher_is_told_where_to_look(
        self, launchers: Launchers, front: DelegatingManager, backend: DelegatingBackend
    ) -> None:
        model = (await models(front))["a"]
        await launchers.end()
        with pytest.raises(ManagerUnavailable, match=r"cannot be called: .*; see systemctl status llamaswapd-launcher"):
            await front.load({})
        with pytest.raises(UnitError, match=r"cannot be called: .*; see systemctl status llamaswapd-launcher"):
            await backend.start(model)

    async def test_is_told_where_to_look_when_the_bus_may_not_start_a_launcher(
        self, launchers: Launchers, front: DelegatingManager, private: Any
    ) -> None:
        async def masked() -> None:
            text = "Unit llamaswapd-launcher.service is masked."
            raise Refused(bus_call("", ""), "org.freedesktop.systemd1.UnitMasked", text)

        await launchers.end()
        orders = launchers.orders()
        orders.arm = masked  # type: ignore[method-assign]  # in the words of the bus
        launchers.start(orders)
        await available(private.bus_address)
        with pytest.raises(UnitError, match=r"cannot be called: .* is masked.; see systemctl status llamaswapd-launch"):
            await front.arm()

    async def test_keeps_to_itself_what_is_no_port(self, front: DelegatingManager) -> None:
        text, _ = await front.load({"a": 0, "b": 70000, LONG: -1})
        assert {model.port for model in Config(**json.loads(text)).models.values()} == {None}

    async def test_asks_again_when_the_launcher_ended_meanwhile(
        self, launchers: Launchers, front: DelegatingManager, private: Any
    ) -> None:
        await launchers.end()
        orders, load = launchers.orders(), launchers.orders().load
        answers = [Refused(bus_call("", ""), "org.freedesktop.DBus.Error.NoReply", "what the bus says then")]

        async def end_at_first(ports: Mapping[str, int]) -> tuple[str, list[str]]:
            if answers:
                raise answers.pop()
            return await load(ports)

        orders.load = end_at_first  # type: ignore[method-assign]
        launchers.start(orders)
        await available(private.bus_address)
        assert "a" in await models(front)


class TestOnTheBus:
    @pytest.fixture
    async def call(self, front: DelegatingManager, private: Any) -> AsyncIterator[Callable[..., Awaitable[list[Any]]]]:
        bus = await Bus.open(private.bus_address, lambda *_: None)

        async def call(member: str, signature: str = "", *body: object, **place: str) -> list[Any]:
            where = {"path": delegation.PATH, "interface": delegation.INTERFACE, **place}
            return await bus.call(Call(delegation.NAME, member=member, signature=signature, body=body, **where))

        yield call
        await bus.close()

    @pytest.mark.parametrize(
        ("member", "signature", "body", "error"),
        [
            ("Start", "ss", ("a", "x"), "InvalidArgs"),
            ("Start", "sqsas", ("a", 0, "x", []), "InvalidArgs"),
            ("Load", "", (), "InvalidArgs"),
            ("StartTransientUnit", "s", ("a",), "UnknownMethod"),
            ("take_over", "", (), "UnknownMethod"),
        ],
    )
    async def test_nothing_but_its_methods_can_be_called(
        self, call: Any, member: str, signature: str, body: tuple[object, ...], error: str
    ) -> None:
        with pytest.raises(Refused) as caught:
            await call(member, signature, *body)
        assert caught.value.name == f"org.freedesktop.DBus.Error.{error}"

    async def test_elsewhere_there_is_nothing(self, call: Any) -> None:
        for place in ({"path": "/"}, {"interface": "org.freedesktop.systemd1.Manager"}):
            with pytest.raises(Refused):
                await call("Stop", "s", "a", **place)

    async def test_it_tells_its_interface(self, call: Any) -> None:
        (text,) = await call("Introspect", interface="org.freedesktop.DBus.Introspectable")
        assert f'<interface name="{delegation.INTERFACE}">' in text
        assert '<method name="Start"><arg type="s" direction="in"/><arg type="q" direction="in"/>' in text

    async def test_there_is_only_one(self, front: DelegatingManager, launchers: Launchers, private: Any) -> None:
        with pytest.raises(UnitError, match=r"there is another org\.llamaswapd\.Launcher1 on the bus"):
            await Service(launchers.orders(), set()).run(private.bus_address)


class Deaf:
    """A bus that does not answer the first time it is asked whose a connection is."""

    def __init__(self) -> None:
        self._answers: list[Any] = [UnitError("the bus did not answer"), [os.geteuid()]]

    async def call(self, call: Call) -> list[Any]:
        answer = self._answers.pop(0)
        if isinstance(answer, UnitError):
            raise answer
        return list(answer)


async def test_a_caller_of_whom_the_bus_said_nothing_may_call_again(launchers: Launchers) -> None:
    service = Service(launchers.orders(), {os.geteuid()})
    service._bus = cast(Bus, Deaf())
    with pytest.raises(UnitError, match="the bus did not answer"):
        await service._may_call(":1.7")
    assert await service._may_call(":1.7")


async def test_without_its_directory_it_says_who_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "nowhere"))
    with pytest.raises(UnitError, match=r"nowhere: No such file or directory; systemctl start llamaswapd-launcher"):
        await run([tmp_path / "config.yaml"], None)


async def test_it_goes_when_nobody_has_called_for_a_while(launchers: Launchers) -> None:
    launchers.start(idle_s=0.01)
    assert launchers.running
    await launchers.running


async def test_it_stays_for_whoever_has_called_until_that_one_leaves(launchers: Launchers, private: Any) -> None:
    launchers.start(idle_s=0.5)
    await available(private.bus_address)
    front = await DelegatingManager.connect("private", private.bus_address)
    await front.load({})
    assert launchers.running
    _, staying = await asyncio.wait([launchers.running], timeout=1.0)
    assert staying
    await front.close()
    await launchers.running


class ForgetfulBus:
    """It gives up waiting for the launcher's start so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def call(self, call: Call) -> list[Any]:
        if self.left:
            self.left -= 1
            raise Refused(call, "org.freedesktop.DBus.Error.TimedOut", "Failed to activate service: timed out")
        return []


class Forgetting(DelegatingManager):
    def __init__(self, times: int) -> None:
        super().__init__("system", "", lambda: True)
        self.bus_of_mine = cast(Bus, ForgetfulBus(times))

    async def _with_bus(self, ask: Callable[[Bus], Awaitable[Any]]) -> Any:
        return await ask(self.bus_of_mine)


async def test_a_start_of_the_launcher_that_systemd_has_not_heard_of_is_ordered_again() -> None:
    await Forgetting(1).arm()
    with pytest.raises(UnitError, match=r"cannot be called: .* timed out; see systemctl status llamaswapd-launcher"):
        await Forgetting(2).arm()
