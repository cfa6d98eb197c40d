"""What the launcher does for the front half, and what it refuses, with units of a private manager."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from llamaswapd.config.schema import Config
from llamaswapd.errors import BusLost, ConfigError, NotStarted
from llamaswapd.launcher.orders import Changed, Orders, UnknownModel
from llamaswapd.launcher.secrets import Secrets
from llamaswapd.systemd import keeper
from llamaswapd.systemd.bus import Call, Refused
from llamaswapd.systemd.manager import NO_SUCH_UNIT, UNIT_EXISTS, Manager
from llamaswapd.systemd.unit import Host, object_path, pattern
from llamaswapd.systemd.watched import Watch

pytestmark = pytest.mark.private

INSTANCE = "launched"
UNIT = f"llamaswapd-{INSTANCE}-model-a.service"
FIRST_PORT = 20000

Make = Callable[..., Orders]


@pytest.fixture
async def manager(private: Any) -> AsyncIterator[Manager]:
    manager = await Manager.connect("private", private.bus_address)
    yield manager
    for name in await manager.list_units(pattern(INSTANCE)):
        unit = keeper.running(manager, name, INSTANCE)
        await unit.take_over()
        await unit.stop(1)
    await manager.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.fixture
def make(manager: Manager, file: Path, tmp_path: Path) -> Make:
    """Make a launcher, or the one after it."""

    def make(held_s: float = 60.0, config_dir: Path | None = None) -> Orders:
        secrets = Secrets(tmp_path)
        host = Host(
            manager.version,
            "/",
            INSTANCE,
            find=lambda name: f"/bin/{name}",
            # As a user's manager cannot make users of its own.
            defaults={},
            environment_file=str(secrets.environments.directory),
        )
        return Orders(manager, host, secrets, [file], config_dir, os.geteuid(), held_s)

    return make


def write(file: Path, **models: Any) -> None:
    """Configure models, `sleep 600` unless they say otherwise."""
    defaults = {"cmd": "sleep 600", "proxy": "http://localhost:9"}
    config = {
        "startPort": FIRST_PORT,
        "systemd": {"User": "root"},
        "models": {id_: defaults | values for id_, values in models.items()},
    }
    file.write_text(json.dumps(config))
    file.chmod(0o600)


async def loaded(orders: Orders, **ports: int) -> Config:
    text, _ = await orders.load(ports)
    return Config(**json.loads(text))


async def start(orders: Orders, config: Config, model_id: str = "a") -> str:
    model = config.models[model_id]
    return await orders.start(model.id, model.port or 0, model.fingerprint)


async def started(manager: Manager, orders: Orders, config: Config) -> Watch:
    """Have a model started, and wait for that as the front half does."""
    watch = await manager.watch(UNIT, object_path(UNIT), lambda properties: None)
    assert await watch.job(await start(orders, config), "start") == "done"
    return watch


def environments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "env").iterdir())


class TestLoading:
    async def test_tells_models_without_what_only_their_units_need(self, make: Make, file: Path) -> None:
        write(file, a={"env": ["TOKEN=hush"], "ttl": 5})
        text, warnings = await make().load({})
        assert (json.loads(text)["models"]["a"]["ttl"], warnings) == (5, [])
        assert "hush" not in text

    async def test_refuses_what_anybody_could_have_written(self, make: Make, file: Path) -> None:
        write(file, a={})
        file.chmod(0o666)
        with pytest.raises(ConfigError, match="can be written by everybody"):
            await make().load({})

    async def test_refuses_a_folder_into_which_anybody_could_put_more(
        self, make: Make, file: Path, tmp_path: Path
    ) -> None:
        write(file, a={})
        folder = tmp_path / "models.d"
        folder.mkdir()
        folder.chmod(0o1777)
        with pytest.raises(ConfigError, match=f"{folder} can be written by everybody"):
            await make(config_dir=folder).load({})

    async def test_refuses_models_that_would_be_root_by_accident(self, make: Make, file: Path) -> None:
        write(file, a={"systemd": {"User": ""}})
        with pytest.raises(ConfigError, match=r"models\.a\.systemd: .* would run as root"):
            await make().load({})

    async def test_lets_running_models_keep_their_ports(self, make: Make, file: Path) -> None:
        write(file, a={"cmd": "sleep ${PORT}"}, b={"cmd": "sleep ${PORT}"})
        config = await loaded(make(), b=FIRST_PORT)
        assert (config.models["a"].port, config.models["b"].port) == (FIRST_PORT + 1, FIRST_PORT)

    @pytest.mark.parametrize("port", [22, 1023, FIRST_PORT - 1])
    async def test_gives_no_ports_out_of_their_range(self, make: Make, file: Path, port: int) -> None:
        write(file, a={"cmd": "sleep ${PORT}"})
        config = await loaded(make(), a=port)
        assert config.models["a"].port == FIRST_PORT

    async def test_anew_judges_the_files_and_goes_on_with_those_before(
        self, make: Make, file: Path, manager: Manager
    ) -> None:
        write(file, a={})
        orders = make()
        config = await loaded(orders)
        write(file, b={})
        await orders.reload()
        await start(orders, config)
        file.write_text("models: 5")
        with pytest.raises(ConfigError):
            await orders.reload()


class TestStarting:
    async def test_makes_the_unit_of_the_file(self, make: Make, file: Path, manager: Manager, tmp_path: Path) -> None:
        write(file, a={"env": ["TOKEN=hush"], "systemd": {"Nice": 5}})
        orders = make()
        watch = await started(manager, orders, await loaded(orders))
        properties = await manager.look(watch)
        assert (properties["Nice"], properties["Environment"]) == (5, [])
        assert environments(tmp_path) == [UNIT]
        environ = Path(f"/proc/{properties['MainPID']}/environ").read_text()
        assert "TOKEN=hush" in environ.split("\0")

    async def test_refuses_a_model_that_nobody_configured(self, make: Make, file: Path) -> None:
        write(file, a={})
        orders = make()
        config = await loaded(orders)
        for model_id in ("b", "", "../a", "a.service", "launched"):
            with pytest.raises(UnknownModel, match="is not in the configuration any more; reload llamaswapd"):
                await orders.start(model_id, 0, config.models["a"].fingerprint)

    async def test_refuses_a_model_that_is_another_by_now(self, make: Make, file: Path, manager: Manager) -> None:
        write(file, a={"cmd": "sleep ${PORT}"})
        orders = make(held_s=0.0)
        before = (await loaded(orders)).models["a"]
        write(file, a={"cmd": "sleep 60${PORT}"})
        now = (await loaded(orders)).models["a"]
        for port, fingerprint in (
            (FIRST_PORT, before.fingerprint),
            (FIRST_PORT, ""),
            (FIRST_PORT + 1, now.fingerprint),
            (0, now.fingerprint),
        ):
            with pytest.raises(Changed, match='model "a" has changed in the configuration; reload llamaswapd'):
                await orders.start("a", port, fingerprint)
        assert await manager.list_units(pattern(INSTANCE)) == []

    async def test_goes_by_what_was_told_before_until_the_front_half_has_come_to_the_new(
        self, make: Make, file: Path, manager: Manager
    ) -> None:
        write(file, a={"cmd": "sleep ${PORT}"}, gone={})
        orders = make()
        before = await loaded(orders)
        write(file, a={"cmd": "sleep 60${PORT}"})
        now = await loaded(orders)
        await start(orders, before, "gone")
        after_us = make()
        watch = await started(manager, after_us, before)
        argv = (await manager.look(watch))["ExecStart"][0][1]
        assert argv == ["/bin/sleep", str(FIRST_PORT)]
        await orders.stop("a")
        await watch.gone
        await start(after_us, now)
        with pytest.raises(Changed):
            await orders.start("a", FIRST_PORT, "of neither")

    async def test_refuses_ports_out_of_the_range_whatever_the_fingerprint(self, make: Make, file: Path) -> None:
        write(file, a={"cmd": "sleep ${PORT}"})
        orders = make()
        model = (await loaded(orders)).models["a"]
        with pytest.raises(NotStarted, match="port 22 is not one that models may have: startPort is 20000"):
            await orders.start("a", 22, model.fingerprint)

    async def test_says_what_is_wrong_with_the_program(self, make: Make, file: Path, tmp_path: Path) -> None:
        write(file, a={"cmd": "/nowhere/server -x"})
        orders = make()
        with pytest.raises(NotStarted, match="failed to start command '/nowhere/server -x': no such file or directory"):
            await start(orders, await loaded(orders))
        assert environments(tmp_path) == []

    async def test_leaves_no_environment_of_what_systemd_refuses(
        self, make: Make, file: Path, manager: Manager, tmp_path: Path
    ) -> None:
        write(file, a={"systemd": {"Requires": "nowhere.service"}})
        orders = make()
        with pytest.raises(Refused):
            await start(orders, await loaded(orders))
        await manager.list_units(UNIT)
        assert environments(tmp_path) == []

    async def test_of_one_that_runs_is_refused_and_takes_nothing_from_it(
        self, make: Make, file: Path, manager: Manager, tmp_path: Path
    ) -> None:
        write(file, a={})
        orders = make()
        config = await loaded(orders)
        await start(orders, config)
        with pytest.raises(Refused) as caught:
            await start(orders, config)
        assert caught.value.name == UNIT_EXISTS
        assert environments(tmp_path) == [UNIT]


class TestTheNextLauncher:
    async def test_starts_what_the_front_half_was_told_whatever_the_file_says_now(
        self, make: Make, file: Path, manager: Manager
    ) -> None:
        write(file, a={"cmd": "sleep ${PORT}"}, b={"cmd": "sleep ${PORT}"})
        config = await loaded(make(), b=FIRST_PORT)
        file.write_text("models: 5")
        orders = make()
        await start(orders, config, "a")
        await start(orders, config, "b")
        assert len(await manager.list_units(pattern(INSTANCE))) == 2

    @pytest.mark.parametrize("rubbish", ["", "{}", "[1, 2]", '["0", {}]', '["0"', "[]"])
    async def test_reads_the_file_if_it_knows_nothing(
        self, make: Make, file: Path, tmp_path: Path, rubbish: str
    ) -> None:
        write(file, a={"cmd": "sleep ${PORT}"}, b={"cmd": "sleep ${PORT}"})
        config = await loaded(make(), b=FIRST_PORT)
        (tmp_path / "config").write_text(rubbish)
        await start(make(), config, "b")
        write(file, b={"cmd": "sleep 60${PORT}"})
        with pytest.raises(Changed):
            await start(make(), config, "b")

    async def test_keeps_the_environments_of_what_runs_until_it_ends(
        self, make: Make, file: Path, manager: Manager, tmp_path: Path
    ) -> None:
        write(file, a={})
        first = make()
        watch = await started(manager, first, await loaded(first))
        (tmp_path / "env" / "llamaswapd-model-gone.service").write_text("TOKEN=hush")
        second = make()
        await second.take_over()
        assert environments(tmp_path) == [UNIT]
        await second.stop("a")
        await watch.gone
        await manager.list_units(UNIT)  # the launcher has heard of it by now, too
        assert environments(tmp_path) == []


class Slow:
    """A manager that tells late that units are gone."""

    version = 257

    def __init__(self) -> None:
        self.watches: list[Watch] = []
        self.refusal: Refused | None = None

    async def watch(self, unit: str, path: str, changed: Callable[[dict[str, Any]], None]) -> Watch:
        self.watches.append(Watch(unit, path, changed))
        return self.watches[-1]

    async def order_start(self, unit: str, properties: object) -> str:
        if self.refusal:
            raise self.refusal
        return "/org/freedesktop/systemd1/job/1"


Starting = tuple[Slow, Callable[[], Awaitable[str]]]


@pytest.fixture
async def starting(make: Make, file: Path) -> Starting:
    """A slow manager, and what has a model started by it."""
    write(file, a={})
    orders, slow = make(), Slow()
    config = await loaded(orders)
    orders._manager = cast(Manager, slow)
    return slow, lambda: start(orders, config)


async def test_the_end_of_a_run_takes_no_environment_from_the_next(starting: Starting, tmp_path: Path) -> None:
    slow, start = starting
    await start()
    await start()
    for watch, left in zip(slow.watches, ([UNIT], []), strict=True):
        watch.set_gone()
        await asyncio.sleep(0)
        assert environments(tmp_path) == left


async def test_a_unit_that_runs_is_followed_once_however_often_it_is_to_be_started(
    starting: Starting, tmp_path: Path
) -> None:
    slow, start = starting
    await start()
    slow.refusal = Refused(Call("", "", "", ""), UNIT_EXISTS, "it is there")
    with pytest.raises(Refused):
        await start()
    first, second = slow.watches
    assert (first.gone.done(), second.gone.done()) == (False, True)
    assert environments(tmp_path) == [UNIT]
    first.set_gone()
    await asyncio.sleep(0)
    assert environments(tmp_path) == []


async def test_a_unit_whose_environment_cannot_be_written_is_not_followed(starting: Starting, tmp_path: Path) -> None:
    slow, start = starting
    (tmp_path / "env" / UNIT).mkdir()  # a full disk, as far as writing goes
    with pytest.raises(NotStarted, match="the environment of"):
        await start()
    (watch,) = slow.watches
    assert watch.gone.done()
    (tmp_path / "env" / UNIT).rmdir()
    assert await start()


async def test_while_the_bus_is_away_an_environment_is_kept_for_the_next_launcher(
    starting: Starting, tmp_path: Path
) -> None:
    slow, start = starting
    await start()
    slow.watches[0].lost(BusLost("it hung up"))
    await asyncio.sleep(0)
    assert environments(tmp_path) == [UNIT]


class TestOtherOrders:
    async def test_hold_for_models_that_are_no_longer_configured(
        self, make: Make, file: Path, manager: Manager, tmp_path: Path
    ) -> None:
        write(file, a={})
        orders = make()
        watch = await started(manager, orders, await loaded(orders))
        write(file, b={})
        await orders.load({})
        await orders.kill("a", signal.SIGKILL)
        await watch.gone
        await manager.list_units(UNIT)  # the launcher has heard of it by now, too
        assert environments(tmp_path) == []

    @pytest.mark.parametrize("model_id", ["b", "", "../dbus", "dbus.service", "*", "a\n", "é"])
    async def test_reach_models_alone(self, make: Make, file: Path, model_id: str) -> None:
        write(file, a={})
        orders = make()
        await start(orders, await loaded(orders))
        for order in (orders.stop(model_id), orders.kill(model_id, signal.SIGKILL), orders.forget(model_id)):
            with pytest.raises(Refused, match=r"llamaswapd-launched-model-") as caught:
                await order
            assert caught.value.name == NO_SUCH_UNIT
