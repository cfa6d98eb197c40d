"""What the launcher does for the front half: each order by one method, named as on the bus.

Nothing that comes from outside reaches systemd but as the id of a model, a signal, or a port that the definition of the
model must have anyway: a start names the fingerprint of what is to be started, and that covers the port.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from llamaswapd.config import wire
from llamaswapd.config.commandline import split
from llamaswapd.config.load import Loaded, load, sources
from llamaswapd.config.schema import Config, ModelConfig
from llamaswapd.errors import Error, NotStarted
from llamaswapd.launcher import guard
from llamaswapd.launcher.secrets import Secrets, Told
from llamaswapd.systemd import delegation, keeper, program
from llamaswapd.systemd.bus import Refused
from llamaswapd.systemd.manager import UNIT_EXISTS, Manager
from llamaswapd.systemd.unit import Host, UnitSpec, build, object_path, oddities, pattern, unit_name
from llamaswapd.systemd.watched import Watch

log = logging.getLogger(__name__)

# The front half goes on with a configuration a moment after it was told, and starts that it has begun before go by the
# one before. So for a while that is not refused; it could have put off asking as well.
HELD_S = 30.0
MOST_HELD = 4  # however fast one follows the other
LEAST_PORT = 1024  # below, a port may be a service's that others trust


class UnknownModel(Error):
    """The files have no model of this id."""

    def __init__(self, model_id: str) -> None:
        super().__init__(f'model "{model_id}" is not in the configuration any more; reload llamaswapd')


class Changed(Error):
    """A model is to be started that is not what the files say."""

    def __init__(self, model_id: str) -> None:
        super().__init__(f'model "{model_id}" has changed in the configuration; reload llamaswapd')


class Orders:
    """Every method may raise Error. `host` is what units take from here, `owner` whose the files have to be."""

    def __init__(
        self,
        manager: Manager,
        host: Host,
        secrets: Secrets,
        files: Sequence[Path],
        config_dir: Path | None,
        owner: int = guard.ROOT,
        held_s: float = HELD_S,
    ) -> None:
        self._manager = manager
        self._host = host
        self._secrets = secrets
        self._files = files
        self._config_dir = config_dir
        self._owner = owner
        self._held_s = held_s
        self._told = secrets.kept_configs()  # what the front half was told, if need be by those before us; latest first
        self._watches: dict[str, Watch] = {}  # unit → its latest run, whose environment is kept
        self._starting = asyncio.Lock()
        self._keeper = keeper.KeeperUnit(manager, keeper.delegated_orders(), user=delegation.USER)

    async def take_over(self) -> None:
        """Go on where the launcher before us ended: keep the environments of units that are there, no others."""
        names = await self._manager.list_units(pattern(self._host.instance))
        self._secrets.environments.forget_others(names)
        for name in names:
            await self._manager.look(await self._watch(name))

    # ---- the configuration

    async def load(self, ports: Mapping[str, int]) -> tuple[str, list[str]]:
        """Read the files; return what the front half may know of them, and what is odd about them.

        Models in `ports` keep these, if the range is still theirs.
        """
        loaded = await self._read(ports)
        least = _least_port(loaded.config)
        if any(port < least for port in ports.values()):
            loaded = await self._read({id_: port for id_, port in ports.items() if port >= least})
        self._told = [Told(loaded.config, time.monotonic()), *self._told[: MOST_HELD - 1]]
        self._secrets.keep_configs(self._told)
        return wire.to_front(loaded.config), [str(warning) for warning in loaded.warnings]

    async def reload(self) -> None:
        """Read and judge the files; go on with those that were read before."""
        await self._read({})

    async def _read(self, ports: Mapping[str, int]) -> Loaded:
        return await asyncio.to_thread(self._read_files, ports)

    def _read_files(self, ports: Mapping[str, int]) -> Loaded:
        folders = [self._config_dir] if self._config_dir else []
        guard.check_files([*folders, *sources(self._files, self._config_dir)], self._owner)
        loaded = load(
            self._files,
            self._config_dir,
            ports=ports,
            defers=True,
            checks_store=False,
            fingerprint_key=self._secrets.key(),
        )
        guard.check_users(loaded.config.models, self._host)
        return loaded

    # ---- units

    async def start(self, model_id: str, port: int, fingerprint: str) -> str:
        """Start the unit of a model that is still what the fingerprint says; return the path of the job."""
        model = await self._model(model_id, port, fingerprint)
        spec = build(model, self._host)
        for oddity in oddities(spec, model, self._host):
            log.warning("<%s> %s", model.id, oddity)
        await asyncio.to_thread(
            program.check, split(model.cmd), self._host.directory, model.systemd, is_for_others=True
        )
        async with self._starting:
            return await self._start(spec)

    async def _start(self, spec: UnitSpec) -> str:
        before = self._watches.get(spec.name)
        watch = await self._watch(spec.name)
        try:
            self._secrets.environments.keep(spec.name, spec.environment_file)
            return await self._manager.order_start(spec.name, spec.properties)
        except NotStarted:
            watch.set_gone()
            raise
        except Refused as error:
            if error.name != UNIT_EXISTS:
                watch.set_gone()
            elif before is not None and not before.gone.done():
                # One that is there goes on with the environment, if only to be stopped. It is followed already, and the
                # bus lets nobody follow very much.
                self._watches[spec.name] = before
                watch.set_gone()
            raise

    async def stop(self, model_id: str) -> str:
        """Have a model's unit stopped, configured or not; return the path of the job."""
        return await self._manager.order_stop(self._unit(model_id))

    async def kill(self, model_id: str, signal: int) -> None:
        await self._manager.kill_unit(self._unit(model_id), signal)

    async def freeze(self, model_id: str) -> None:
        await self._manager.freeze_unit(self._unit(model_id))

    async def thaw(self, model_id: str) -> None:
        await self._manager.thaw_unit(self._unit(model_id))

    async def forget(self, model_id: str) -> None:
        await self._manager.reset_failed_unit(self._unit(model_id))

    async def arm(self) -> None:
        """Put a keeper in place of the one before."""
        await self._keeper.replace()

    async def disarm(self) -> None:
        await self._keeper.remove()

    def _unit(self, model_id: str) -> str:
        """Return the name of a model's unit. Whatever the id, it is that of a model's unit and no other."""
        return unit_name(model_id, self._host.instance)

    async def _model(self, model_id: str, port: int, fingerprint: str) -> ModelConfig:
        """Return a model's definition as the front half was told it; by the files if nobody knows what that was."""
        if not self._told:
            read = await self._read({model_id: port} if port else {})
            self._told = [Told(read.config, time.monotonic())]
        try:
            return _defined(self._told[0].config, model_id, port, fingerprint)
        except (UnknownModel, Changed):
            for before in self._held():
                with suppress(Error):
                    return _defined(before, model_id, port, fingerprint)
            raise

    def _held(self) -> list[Config]:
        """Return the configurations before the latest that the front half may not have done with."""
        since = time.monotonic() - self._held_s
        return [before.config for after, before in pairwise(self._told) if after.at > since]

    async def _watch(self, name: str) -> Watch:
        """Follow a unit, to forget its environment when it is gone."""
        watch = await self._manager.watch(name, object_path(name), lambda properties: None)
        self._watches[name] = watch
        watch.gone.add_done_callback(lambda _: self._forget(name, watch))
        return watch

    def _forget(self, name: str, watch: Watch) -> None:
        if self._watches.get(name) is not watch:  # there is a next run of it, with an environment of its own
            return
        del self._watches[name]
        if watch.gone.exception() is None:  # otherwise nobody knows, and the next launcher will
            self._secrets.environments.forget(name)


def _defined(config: Config, model_id: str, port: int, fingerprint: str) -> ModelConfig:
    """Return a model if it is what it is to be; raises Error."""
    if port and port < (least := _least_port(config)):
        raise NotStarted(f"port {port} is not one that models may have: startPort is {least}")
    if model_id not in config.models:
        raise UnknownModel(model_id)
    model = config.models[model_id]
    if (model.port or 0, model.fingerprint) != (port, fingerprint):
        raise Changed(model_id)
    return model


def _least_port(config: Config) -> int:
    return max(config.start_port, LEAST_PORT)
