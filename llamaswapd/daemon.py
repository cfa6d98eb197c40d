"""The composition root: build everything, start it in order, stop it in reverse.

Start: configuration, log, listening sockets, instance lock, systemd, leftovers, HTTP, READY=1, preload. The sockets are
bound early, so that a taken address is found before anything is touched.
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
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaswapd import loop
from llamaswapd.activity.activity import Activity
from llamaswapd.config.load import Loaded, load, sources
from llamaswapd.config.schema import Config
from llamaswapd.engine import Engine
from llamaswapd.errors import BusLost, ConfigError, UsageError
from llamaswapd.http.app import FrontEnd
from llamaswapd.http.metrics import Durations
from llamaswapd.machine.hardware import Hardware
from llamaswapd.machine.performance import Performance
from llamaswapd.observe import LineFormat, Observer
from llamaswapd.systemd import service
from llamaswapd.systemd.connect import Wanted, connect
from llamaswapd.systemd.unit import check_instance

log = logging.getLogger(__name__)

SHUTDOWN_BUDGET_S = 30.0  # for requests in flight and the models' grace together (llama-swap)
LEAST_GRACE_S = 0.001
FORCED_EXIT_AFTER_S = 35.0
WATCH_EVERY_S = 2.0
BACKLOG = 4096
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    files: tuple[Path, ...]
    config_dir: Path | None
    listen: str
    tls: tuple[str, str] | None  # certificate and key file
    watch_config: bool
    manager: Wanted | None
    instance: str

    def load(self, observer: Observer) -> Config:
        """Read the configuration, set up the log as it says, log its warnings; raises ConfigError."""
        loaded = load(self.files, self.config_dir)
        self.heed(loaded, observer)
        return loaded.config

    @staticmethod
    def heed(loaded: Loaded, observer: Observer) -> None:
        """Set up the log as a configuration says, and log what is odd about it."""
        set_up_log(loaded.config, observer)
        for warning in loaded.warnings:
            log.warning("%s", warning)

    def file_times(self) -> dict[Path, tuple[int, int]]:
        """Return when each file of the configuration was last changed, and its size; without those that are gone."""
        times = {}
        with contextlib.suppress(ConfigError):  # the directory has gone, or holds no file: it may come back
            for path in sources(self.files, self.config_dir):
                with contextlib.suppress(OSError):
                    stat = path.stat()
                    times[path] = (stat.st_mtime_ns, stat.st_size)
        return times


async def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    if options.instance:
        check_instance(options.instance)
    observer = Observer()
    config = options.load(observer)
    activity, durations = Activity(config, observer.events), Durations()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(ended_by_signals())
        listeners = service.listen_sockets() or bind(options.listen)
        for listener in listeners:
            stack.callback(listener.close)
        tls = tls_context(options.tls)
        await activity.open()
        stack.push_async_callback(activity.close)
        notify = service.Notifier()
        stack.callback(notify.close)
        runtime_dir = stack.enter_context(service.runtime_directory(options.instance))
        stack.enter_context(service.instance_lock(runtime_dir))
        backend = await stack.enter_async_context(
            connect(options.manager or config.manager, options.instance, runtime_dir, lambda: engine.config.models)
        )
        engine = Engine(config, backend, durations)
        daemon = Daemon(options, engine, observer, activity, durations, notify)
        backend.manager.on_lost = daemon.lose_bus
        for unit in await backend.clear():
            log.warning("stopped %s, left over from an earlier run", unit)
        await daemon.run(listeners, tls)
    return 0


class Daemon:
    """The running program: an engine and a front end, from READY=1 to the last unit gone."""

    def __init__(
        self,
        options: Options,
        engine: Engine,
        observer: Observer,
        activity: Activity,
        durations: Durations,
        notify: service.Notifier,
    ) -> None:
        self._options = options
        self._engine = engine
        self._activity = activity
        self._hardware = Hardware()
        self._performance = Performance(engine.config.performance)
        self._front = FrontEnd(engine, observer, activity, durations, self._hardware, self._performance)
        self._observer = observer
        self._notify = notify
        self._reload_wanted = asyncio.Event()
        self._preloading = asyncio.Event()
        self._stop = asyncio.Event()
        self._bus_lost = False

    async def run(self, listeners: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:
        """Serve until a signal comes, then let requests end, then stop the models."""
        signals = asyncio.get_running_loop().add_signal_handler
        for number in STOP_SIGNALS:
            signals(number, self._stop.set)
        signals(signal.SIGHUP, self._reload)
        await self._front.start(listeners, tls)
        self._announce(listeners, "https" if tls else "http")
        loop.settle_memory()
        self._notify.ready()
        async with background(
            preload=self._preload(),
            watchdog=self._feed_watchdog(),
            watch_config=self._watch_config(),
            print_logs=self._print_models_logs(),
            reload=self._reload_when_wanted(),
            hardware=self._hardware.detect(),
            performance=self._performance.run(),
        ):
            await self._stop.wait()
        await self._shut_down()

    async def _shut_down(self) -> None:
        now = asyncio.get_running_loop().time
        deadline = now() + SHUTDOWN_BUDGET_S
        forced = asyncio.get_running_loop().call_later(FORCED_EXIT_AFTER_S, os._exit, 1)
        log.info("stopping: no new connections, waiting for requests in flight")
        self._notify.stopping()
        self._front.stop_accepting()
        self._front.close_streams()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._front.drained()
        await self._engine.close(max(deadline - now(), LEAST_GRACE_S))
        await self._front.close()
        forced.cancel()
        if self._bus_lost:
            raise BusLost("the connection to systemd's bus was lost; start llamaswapd again")
        log.info("stopped")

    # ---- what goes on beside the requests

    async def _preload(self) -> None:
        """Load what is wanted from the start, now and after each reload."""
        self._preloading.set()
        while True:
            await self._preloading.wait()
            self._preloading.clear()
            await self._engine.preload(self._engine.config.hooks.on_startup.preload)

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
        """Reload when a file changed, came or went. Looking is what works for bind mounts and symlinks alike."""
        if not self._options.watch_config:
            return
        seen = await asyncio.to_thread(self._options.file_times)
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            now = await asyncio.to_thread(self._options.file_times)
            if now != seen and len(now) >= len(seen):  # a vanished file does not count, its return does
                self._reload()
            seen = now

    def _reload(self) -> None:
        """Ask for a reload; one that is asked for while another is under way follows it."""
        if not self._stop.is_set():
            self._reload_wanted.set()

    async def _reload_when_wanted(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
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
            loaded = await asyncio.to_thread(load, self._options.files, self._options.config_dir)
            await self._activity.reconfigure(loaded.config)
        except ConfigError as error:
            log.error("failed to reload config: %s", error)
            return False
        self._options.heed(loaded, self._observer)
        self._performance.reconfigure(loaded.config.performance)
        self._front.reconfigure(loaded.config)
        self._engine.reconfigure(loaded.config)
        log.info("configuration reloaded")
        return True

    def lose_bus(self) -> None:
        """Stop: without the bus no model can be started, stopped or watched."""
        log.error("lost the connection to systemd's bus; stopping")
        self._bus_lost = True
        self._stop.set()

    def _announce(self, listeners: Sequence[socket.socket], scheme: str) -> None:
        for listener in listeners:
            name = listener.getsockname()
            if not isinstance(name, tuple):
                log.info("llama-swap listening on %s", name)
                continue
            host, port = name[:2]
            log.info("llama-swap listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
            if not host.startswith("127.") and host != "::1":
                log.info("it can be reached from other machines; use -listen 127.0.0.1:%d if it should not be", port)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGINT end the block, cleanly, until it handles them itself."""
    signals, starting = asyncio.get_running_loop().add_signal_handler, asyncio.current_task()
    assert starting is not None
    signals(signal.SIGHUP, log.warning, "not reloading: still starting")
    for number in STOP_SIGNALS:  # only the first one counts: a second would end the putting away
        signals(number, lambda: starting.cancelling() or starting.cancel())
    try:
        yield
    except asyncio.CancelledError:
        log.info("stopped before everything had started")


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
    for handler in handlers:
        handler.setFormatter(LineFormat(config.log_time_format))
        root.addHandler(handler)


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
            f"cannot listen on {address}: {error.strerror or error}; choose another -listen address"
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
