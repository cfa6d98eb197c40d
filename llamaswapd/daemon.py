"""The composition root: build everything, start it in order, stop it in reverse.

Start: configuration, log, listening sockets, instance lock, systemd, what runs already, HTTP, READY=1, preload. The
sockets are bound early, so that a taken address is found before anything is touched. Stop: no new connections, requests
in flight, then the models, or, if systemd is to start us again, their names for the next daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamaswapd import loop
from llamaswapd.activity.activity import Activity
from llamaswapd.condition import Condition
from llamaswapd.config.load import Loaded
from llamaswapd.config.schema import Config
from llamaswapd.engine import Engine
from llamaswapd.errors import BusLost, ConfigError, Error, ManagerUnavailable, UsageError
from llamaswapd.http.app import FrontEnd
from llamaswapd.http.metrics import Durations
from llamaswapd.http.server import Listener
from llamaswapd.machine.hardware import Hardware
from llamaswapd.machine.performance import Performance
from llamaswapd.observe import Observer
from llamaswapd.observe.log import LineFormat
from llamaswapd.source import Files, Launcher, Source
from llamaswapd.state import State as Memory
from llamaswapd.state import StateFile
from llamaswapd.systemd import service
from llamaswapd.systemd.backend import Found, SystemdBackend
from llamaswapd.systemd.connect import Wanted, connect, delegated
from llamaswapd.systemd.delegation import DelegatingManager
from llamaswapd.systemd.keeper import Keeper
from llamaswapd.systemd.own_unit import UNKNOWN, own_job
from llamaswapd.systemd.unit import check_instance
from llamaswapd.watch import Content, Watcher, look

log = logging.getLogger(__name__)

SHUTDOWN_BUDGET_S = 30.0  # for requests in flight and the models' grace together (llama-swap)
LEAST_GRACE_S = 0.001  # for models whose time to stop the requests in flight have used up (llama-swap)
FORCED_EXIT_AFTER_S = 5.0  # beyond that
FIND_WITHIN_S = 30.0
STATUS_PAUSE_S = 0.2  # between lines for systemctl status
QUEUE_LOOK_S = 1.0  # how often the queue is looked at for them
MEMORY_PAUSE_S = 0.1  # between writes of what the next daemon should know
USE_LOOK_S = 5.0  # how old that may become while models are used
BACKLOG = 4096
COMES_BACK = ("restart", "try-restart", UNKNOWN)  # our job, if there will be, or may be, a next daemon
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    files: tuple[Path, ...]
    config_dir: Path | None
    listen: str
    tls: tuple[str, str] | None  # certificate and key file
    watch_config: bool
    manager: Wanted | Literal["launcher"] | None
    instance: str


def heed(loaded: Loaded, observer: Observer) -> None:
    """Set up the log as a configuration says, and log what is odd about it."""
    set_up_log(loaded.config, observer)
    for warning in loaded.warnings:
        log.warning("%s", warning)


class Orders:
    """What signals ask for: SIGHUP a reload, SIGTERM and SIGINT the end."""

    def __init__(self) -> None:
        self.reload = asyncio.Event()
        self.stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload.set)

    def heed_stops(self) -> None:
        """From now on have a stop seen to by whoever waits for it."""
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Have a stop end the block, cleanly, until `heed_stops`."""
        starting = asyncio.current_task()
        assert starting is not None
        for number in STOP_SIGNALS:  # only the first one counts: a second would end the putting away
            asyncio.get_running_loop().add_signal_handler(number, lambda: starting.cancelling() or starting.cancel())
        try:
            yield
        except asyncio.CancelledError:
            log.info("stopped before everything had started")


@dataclass(frozen=True)
class Parts:
    """What a daemon is made of, built and to be put away by `run`."""

    options: Options
    source: Source
    files: Mapping[Path, Content]  # the configuration's, as they were before they were read
    orders: Orders
    observer: Observer
    activity: Activity
    durations: Durations
    notify: service.Notifier
    engine: Engine
    memory: StateFile
    keeper: Keeper
    condition: Condition


async def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    if options.instance:
        check_instance(options.instance)
    observer, orders = Observer(), Orders()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(orders.ending())
        delegating = None
        if options.manager == "launcher":
            delegating = await stack.enter_async_context(DelegatingManager.connected())
        source: Source = Launcher(delegating) if delegating else Files(options.files, options.config_dir)
        files = look(source.watched)
        loaded = await source.read()
        heed(loaded, observer)
        config = loaded.config
        activity, durations = Activity(config, observer.events), Durations()
        listeners = listen(options)
        for listener in listeners:
            stack.callback(listener.socket.close)
        await activity.open()
        stack.push_async_callback(activity.close)
        notify = service.Notifier()
        stack.callback(notify.close)
        runtime_dir = stack.enter_context(service.runtime_directory(options.instance))
        stack.enter_context(service.instance_lock(runtime_dir))
        if delegating is not None:
            backend = delegated(delegating, lambda: engine.config.models)
        else:
            assert options.manager != "launcher"
            backend = await stack.enter_async_context(
                connect(options.manager or config.manager, options.instance, runtime_dir, lambda: engine.config.models)
            )
        # From here on there may be models to stop, or to leave, as the signal's cause says: that takes a whole daemon.
        orders.heed_stops()
        memory = StateFile(service.state_path(options.instance, runtime_dir))
        keeper = Keeper.under(backend.manager, options.instance, runtime_dir, memory.path)
        stack.callback(keeper.let_go)
        await keeper.arm()
        found = await find(backend)
        with left_if_it_fails(backend, found):
            if ports := {each.model_id: each.port for each in found if each.port is not None}:
                config = (await source.read(ports)).config
            engine = Engine(config, backend, durations)
            engine.adopt(found, await asyncio.to_thread(memory.read))
            daemon = Daemon(
                Parts(
                    options,
                    source,
                    files,
                    orders,
                    observer,
                    activity,
                    durations,
                    notify,
                    engine,
                    memory,
                    keeper,
                    Condition(),
                )
            )
            backend.manager.on_connection = daemon.note_bus
            backend.manager.on_dead = daemon.lose_systemd
            await daemon.run(listeners)
    return 0


async def find(backend: SystemdBackend) -> list[Found]:
    """Return the units that are there; raises ManagerUnavailable if systemd does not say."""
    try:
        async with asyncio.timeout(FIND_WITHIN_S):
            return await backend.find()
    except TimeoutError:
        raise ManagerUnavailable(f"systemd did not say within {FIND_WITHIN_S:g} s which units there are") from None


@contextlib.contextmanager
def left_if_it_fails(backend: SystemdBackend, found: Sequence[Found]) -> Iterator[None]:
    """Leave models to the next daemon if this one breaks down: that is no reason for them to end."""
    try:
        yield
    except BusLost:
        raise
    except Exception:
        if found:
            backend.leave()
        raise


class Daemon:
    """The running program: an engine and a front end, from READY=1 to the last unit gone."""

    def __init__(self, parts: Parts) -> None:
        self._options = parts.options
        self._source = parts.source
        self._files = parts.files
        self._orders = parts.orders
        self._observer = parts.observer
        self._activity = parts.activity
        self._notify = parts.notify
        self._engine = engine = parts.engine
        self._memory = parts.memory
        self._keeper = parts.keeper
        self._condition = parts.condition
        self._hardware = Hardware()
        self._performance = Performance(engine.config.performance)
        self._front = FrontEnd(
            engine,
            parts.observer,
            parts.activity,
            parts.durations,
            self._hardware,
            self._performance,
            parts.condition,
        )
        self._preloading = asyncio.Event()
        self._has_changed = asyncio.Event()  # what systemctl status says
        self._must_remember = asyncio.Event()
        self._systemd_is_lost = False
        self._written: Memory | None = None

    async def run(self, listeners: Sequence[Listener]) -> None:
        """Serve until it is to stop, then let requests end, then stop the models or leave them to the next daemon."""
        self._engine.on_change(self._has_changed.set)
        self._engine.on_change(self._must_remember.set)
        await self._front.start(listeners)
        announce(listeners)
        loop.settle_memory()
        self._notify.ready()
        async with background(
            status=self._tell_status(),
            remember=self._remember(),
            preload=self._preload(),
            watchdog=self._feed_watchdog(),
            watch_config=self._watch_config(),
            print_logs=self._print_models_logs(),
            reload=self._reload_when_wanted(),
            hardware=self._hardware.detect(),
            performance=self._performance.run(),
        ):
            await self._orders.stop.wait()
        await self._shut_down()

    async def _shut_down(self) -> None:
        now = asyncio.get_running_loop().time
        began, limit_s = now(), self._engine.config.drain_timeout
        deadline = began + max(limit_s, SHUTDOWN_BUDGET_S)  # for the models to be gone
        forced = asyncio.get_running_loop().call_at(deadline + FORCED_EXIT_AFTER_S, os._exit, 1)
        log.info("stopping: no new connections, waiting for requests in flight")
        self._condition.is_draining = True
        self._notify.stopping()
        self._notify.status(self._status_line())
        self._front.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(began + limit_s):
                await self._front.drained()
        keeps_models = await self._is_to_keep_models()
        self._front.cut("llamaswapd is being restarted" if keeps_models else "llamaswapd is stopping")
        if keeps_models:
            await self._leave_models()
        else:
            await self._engine.close(max(deadline - now(), LEAST_GRACE_S))
            await self._keeper.disarm()
            await self._write_memory()
            if not service.has_state_directory():
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self._memory.remove)
        await self._front.close()
        forced.cancel()
        if self._systemd_is_lost:
            raise BusLost("systemd is gone; start llamaswapd again")
        log.info("stopped")

    async def _is_to_keep_models(self) -> bool:
        """Tell whether models outlive this daemon: `onStop` says so, or systemd, if it is to start us again."""
        wanted = self._engine.config.on_stop
        if wanted != "auto":
            return wanted == "keep"
        return await own_job() in COMES_BACK

    async def _leave_models(self) -> None:
        log.info("models stay, for the next llamaswapd")
        await self._write_memory()
        await self._engine.keep()

    # ---- what goes on beside the requests

    async def _preload(self) -> None:
        """Load what is wanted from the start, now and after each reload."""
        self._preloading.set()
        while True:
            await self._preloading.wait()
            self._preloading.clear()
            await self._engine.preload(self._engine.config.hooks.on_startup.preload, spare_running=True)

    async def _tell_status(self) -> None:
        """Keep the line in `systemctl status` up to date."""
        told = ""
        while True:
            self._has_changed.clear()
            line = self._status_line()
            if line != told:
                self._notify.status(line)
                told = line
            await asyncio.sleep(STATUS_PAUSE_S)
            may_queue = any(status.state.value != "stopped" for status in self._engine.statuses())
            with contextlib.suppress(TimeoutError):  # nobody tells of the queue
                async with asyncio.timeout(QUEUE_LOOK_S if may_queue else None):
                    await self._has_changed.wait()

    def _status_line(self) -> str:
        statuses = self._engine.statuses()
        states = [status.state.value for status in statuses]
        waiting = sum(status.waiting for status in statuses)
        return self._condition.status_line(states.count("ready"), states.count("starting"), waiting)

    async def _remember(self) -> None:
        """Write down what the next daemon should know, soon after it has changed."""
        while True:
            self._must_remember.clear()
            await self._write_memory()
            await asyncio.sleep(MEMORY_PAUSE_S)
            must_look = self._engine.memory().models or self._condition.state_error
            with contextlib.suppress(TimeoutError):  # nobody tells of requests
                async with asyncio.timeout(USE_LOOK_S if must_look else None):
                    await self._must_remember.wait()

    async def _write_memory(self) -> None:
        memory = self._engine.memory()
        if memory == self._written and not self._condition.state_error:
            return
        try:
            await asyncio.to_thread(self._memory.write, memory)
        except OSError as error:
            trouble = f"cannot write {self._memory.path}: {error.strerror}; idle times will count anew after a restart"
        else:
            trouble, self._written = "", memory
        if trouble != self._condition.state_error:
            log.warning("%s", trouble or f"{self._memory.path} can be written again")
            self._condition.state_error = trouble
            self._has_changed.set()

    async def _feed_watchdog(self) -> None:
        while self._notify.watchdog_interval_s:
            self._notify.watchdog()
            await asyncio.sleep(self._notify.watchdog_interval_s)

    async def _print_models_logs(self) -> None:
        """Print what models say, if `logToStdout` wants it. The journal has it in any case."""
        if self._engine.config.log_to_stdout in ("upstream", "both"):
            async for model_id, line in self._engine.logs(None, 0):
                if model_id:
                    print(line, flush=True)

    async def _watch_config(self) -> None:
        if self._options.watch_config:
            async with Watcher(self._source.watched, self._reload, self._files):
                await asyncio.Event().wait()

    def _reload(self) -> None:
        """Ask for a reload; one that is asked for while another is under way follows it."""
        self._orders.reload.set()

    async def _reload_when_wanted(self) -> None:
        while True:
            await self._orders.reload.wait()
            self._orders.reload.clear()
            self._notify.reloading()
            try:
                is_done = await self._reloaded()
            finally:
                self._notify.ready()
            if is_done:
                self._preloading.set()

    async def _reloaded(self) -> bool:
        """Go on with the configuration as it is now; if it is wrong, with the one there was."""
        log.info("reloading configuration")
        try:
            loaded = await self._read_again()
        except ConfigError as error:
            log.error("failed to reload config: %s", error)
            self._refuse(error, error.where)
            return False
        except Error as error:  # of the launcher
            log.error("failed to reload config: %s", error)
            self._refuse(error, "no launcher")
            return False
        except Exception as error:  # a reload that fails must not be the last one
            log.exception("failed to reload config")
            self._refuse(error, type(error).__name__)
            return False
        heed(loaded, self._observer)
        self._performance.reconfigure(loaded.config.performance)
        self._front.reconfigure(loaded.config)
        self._engine.reconfigure(loaded.config)
        self._condition.config_error = self._condition.config_summary = ""
        self._has_changed.set()
        log.info("configuration reloaded")
        return True

    async def _read_again(self) -> Loaded:
        """Read the configuration anew, with the ports that units have when it has been read."""
        while True:
            ports = self._engine.ports
            loaded = await self._source.read(ports)
            await self._activity.reconfigure(loaded.config)
            if self._engine.ports.items() <= ports.items():
                return loaded

    def _refuse(self, error: Exception, where: str) -> None:
        """Say what is wrong with a new configuration; not its text where everybody can read it."""
        self._condition.config_error = f"still running on the configuration before, the new one is refused: {error}"
        self._condition.config_summary = f"new configuration refused ({where}), see the log"
        self._has_changed.set()

    def note_bus(self, trouble: str) -> None:
        """systemd can no longer be reached, or, with "", it can again."""
        if trouble:
            log.error("%s; models that run are served, none can be started or stopped until it is back", trouble)
        else:
            log.warning("systemd can be reached again")
        self._condition.bus_error = f"{trouble}; no model can be started or stopped until it is back" if trouble else ""
        self._has_changed.set()

    def lose_systemd(self) -> None:
        """Stop: the systemd that runs the models has gone for good."""
        log.error("the systemd that runs the models is gone; stopping")
        self._systemd_is_lost = True
        self._orders.stop.set()


@contextlib.asynccontextmanager
async def background(**work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have some work done beside the block, for as long as the block lasts."""
    tasks = [asyncio.create_task(each, name=name) for name, each in work.items()]
    for task in tasks:
        task.add_done_callback(_log_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)


def set_up_log(config: Config, observer: Observer) -> None:
    """Have our own lines kept for `/logs`, and printed if `logToStdout` wants that. May be called again."""
    root = logging.getLogger()
    root.setLevel({"warn": "WARNING"}.get(config.log_level, config.log_level.upper()))
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    observer.access.flush()
    handlers: list[logging.Handler] = [observer.access, observer.log]
    if config.log_to_stdout in ("proxy", "both"):
        handlers.append(logging.StreamHandler(sys.stdout))
    line_format = LineFormat(config.log_time_format)
    for handler in handlers:
        handler.setFormatter(line_format)
        root.addHandler(handler)


def listen(options: Options) -> list[Listener]:
    """Return the sockets to listen on: those that a socket unit passed to us, else the `-listen` address, bound.

    What each of them speaks is a matter of its name, see `Passed.speaks_tls`.
    """
    tls = tls_context(options.tls)
    passed = [
        Listener(each.socket, tls if each.speaks_tls(has_certificate=tls is not None) else None)
        for each in service.passed_sockets()
    ]
    return passed or [Listener(bound, tls) for bound in bind(options.listen)]


def announce(listeners: Iterable[Listener]) -> None:
    for listener in listeners:
        name, scheme = listener.socket.getsockname(), "https" if listener.tls else "http"
        if not isinstance(name, tuple):
            log.info("llama-swap listening on %s", os.fsdecode(name))
            continue
        host, port = name[:2]
        log.info("llama-swap listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
        if not host.startswith("127.") and host != "::1":
            log.info("it can be reached from other machines; use -listen 127.0.0.1:%d if it should not be", port)


def bind(address: str) -> list[socket.socket]:
    """Bind `host:port` or `:port` (all interfaces, both protocols); raises UsageError naming the remedy."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise UsageError(f'-listen "{address}" is not an address; write host:port or :port')
    host = host.strip("[]")
    try:
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return [socket.create_server((host, int(port)), family=family, backlog=BACKLOG)]
        if socket.has_dualstack_ipv6():
            family, dual = socket.AF_INET6, True
            return [socket.create_server(("", int(port)), family=family, dualstack_ipv6=dual, backlog=BACKLOG)]
        return [socket.create_server(("", int(port)), backlog=BACKLOG)]
    except OSError as error:
        raise UsageError(
            f"cannot listen on {address}: {error.strerror or error}; "
            "choose another address, by -listen or the socket unit"
        ) from error


def tls_context(files: tuple[str, str] | None) -> ssl.SSLContext | None:
    """Return the context for a certificate and its key; raises UsageError naming the file."""
    if files is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(*files)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot use certificate {files[0]} with key {files[1]}: {error}") from error
    return context
