"""The faults, one after another: each strikes and returns; `stage` says what must be true afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from tests.faults.crowd import Client, Connecting, Streaming, Swapping, Tally, WithoutPause
from tests.faults.places import Failed, Place, Private, Service, is_gone, output, stands_still
from tests.faults.stage import (
    CHANGING,
    ECHO,
    SERVER,
    STEADY,
    STREAM,
    Fault,
    Stage,
    all_but_reloads,
    all_kinds,
    steady_ones,
)
from tests.faults.wire import CUT, UNHEARD, Answer, Broken, eventually

PRIVATE, SYSTEM, USER, VM = "private", "system", "user", "vm"

# How requests end whose connection was in the hands of a daemon that was killed.
WITH_THE_DAEMON = (UNHEARD, CUT)
# How requests end that were at a model which was killed.
WITH_THE_MODEL = ("status 500", "status 502", CUT)

TTL_S = 3
TTL_GRACE_S, SLOW_GRACE_S = 5.0, 20.0  # a model whose daemon is gone for good may be so much later
WATCHDOG_S = 2
A_START_S = 0.5  # what a reload or a start takes, about


# ---- the daemon


async def restarted(stage: Stage) -> None:
    assert isinstance(stage.place, Service)
    await stage.place.restart()


async def killed(stage: Stage) -> None:
    with stage.excused(*WITH_THE_DAEMON):
        await stage.place.kill()
    await stage.place.revive()


async def killed_twice(stage: Stage) -> None:
    """The second time while it starts, or soon afterwards."""
    await killed(stage)
    with stage.excused(*WITH_THE_DAEMON):
        pid = await eventually(stage.place.daemon_pid, "there is a daemon again")
        await asyncio.sleep(stage.rng.random() * 0.5)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await eventually(is_gone(pid), f"the daemon {pid} is gone")
    await stage.place.revive()


async def blocked(stage: Stage) -> None:
    """The process stands still, as a blocked event loop does for systemd."""
    pid = await stage.place.daemon_pid()
    with stage.excused(*WITH_THE_DAEMON):
        os.kill(pid, signal.SIGSTOP)
        await eventually(is_gone(pid), f"the watchdog has ended the daemon {pid}", 3 * WATCHDOG_S + 10)


# ---- its other half


async def launcher_killed(stage: Stage) -> None:
    """Nobody notices: whoever needs it starts it."""
    place = service(stage)
    async with in_the_middle(stage) as work:
        await place.kill_launcher()
        await work


async def launcher_killed_twice(stage: Stage) -> None:
    """The second time while it starts: the bus, which has it started, does not notice."""
    place = service(stage)
    async with in_the_middle(stage) as work:
        await place.kill_launcher()
        await eventually(partial(place.main_pid, place.launcher), "there is a launcher again")
        await asyncio.sleep(stage.rng.random() * A_START_S)
        await place.kill_launcher()
        await work


async def both_killed(stage: Stage) -> None:
    place = service(stage)
    with stage.excused(*WITH_THE_DAEMON):
        async with in_the_middle(stage) as work:
            await asyncio.gather(place.kill(), place.kill_launcher())
            with suppress(Broken, Failed):
                await work


def service(stage: Stage) -> Service:
    assert isinstance(stage.place, Service)
    return stage.place


@asynccontextmanager
async def in_the_middle(stage: Stage) -> AsyncIterator[asyncio.Task[None]]:
    """Yield a start, a reload, or nothing but what the crowd does, in turn, at a random moment of it."""

    async def load() -> None:
        (await stage.post("/api/models/load/starting")).succeeded()

    async def nothing() -> None:
        pass

    work = asyncio.create_task((nothing, load, stage.place.reload)[stage.row.runs % 3]())
    await asyncio.sleep(stage.rng.random() * A_START_S)
    yield work
    await stage.place.answers()
    await stage.has_answered("starting")
    (await stage.post("/api/models/unload/starting")).succeeded()
    units = await stage.place.units()
    assert stage.place.unit("starting") not in units, f"a model that was unloaded is still there: {units}"


# ---- gone


async def gone_for_good(stage: Stage, launcher_too: bool = False) -> None:
    """Nothing starts it again; its models with a ttl end by themselves, and the others are there when it is back."""
    place = stage.place
    await stage.crowd.everyone_has_had_a_turn()
    await stage.crowd.pause()
    await stage.has_answered("passing")
    used_at = time.monotonic()
    unit = place.unit("passing")
    assert unit in await place.units()
    if isinstance(place, Service):
        # The socket, too: else the clients would bring it back.
        await place.systemctl("mask", "--now", "llamaswapd.socket") if "llamaswapd.socket" in place.units_of_ours else 0
        await place.systemctl("mask", "llamaswapd.service")
    await place.kill()
    if launcher_too:
        await service(stage).kill_launcher()
    try:

        async def is_unloaded() -> bool:
            return unit not in await place.units() and unit not in place.model_processes().values()

        grace_s = SLOW_GRACE_S if is_slow() else TTL_GRACE_S
        await eventually(is_unloaded, f"{unit} is gone", used_at + TTL_S + grace_s - time.monotonic())
        left = await place.units()
        for model in (STEADY, STREAM):
            assert place.unit(model) in left, f"{model}, which has no ttl, is gone: {left}"
    finally:
        if isinstance(place, Service):
            await place.systemctl("unmask", "llamaswapd.service", "llamaswapd.socket")
            with suppress(Failed):
                await place.systemctl("start", "llamaswapd.socket")
            await place.systemctl("start", "llamaswapd.service")
        await place.revive()
        await place.answers()
        stage.crowd.resume()


# ---- its configuration


async def reloaded(stage: Stage) -> None:
    await stage.place.reload()


async def reloaded_during_a_stream(stage: Stage, seconds: float) -> None:
    """The crowd's reloads change another model all the time."""
    stream = Streaming(stage.place, stage.tally, [STREAM])
    stream.gap_s, stream.tokens = 0.1, round(seconds * 10)
    await stream.turn()


async def broken(stage: Stage) -> None:
    """A file that is wrong changes nothing, and it can be read what is wrong with it."""
    place = stage.place
    good = json.dumps(place.config)
    wrong = '{"models": {"steady": {"cmd": ""}, "stream": {"cmmd"'
    await stage.crowd.pause()
    try:
        place.write_text(wrong)
        await place.reload()

        async def is_told() -> bool:
            return place.config_file.name in await place.config_error()

        await eventually(is_told, "/health?verbose tells of the broken file", 10)
        if isinstance(place, Service):

            async def is_in_status() -> bool:
                return "config" in await place.status_text()

            await eventually(is_in_status, "STATUS= tells of the broken file", 5)
        stage.crowd.resume()
        for model, pid in stage.pids.items():
            assert await stage.has_answered(model) == pid
        await stage.crowd.everyone_has_had_a_turn()
    finally:
        await stage.crowd.pause()
        place.write_text(good)
        await place.reload()

        async def is_well() -> bool:
            return not await place.config_error()

        await eventually(is_well, "/health?verbose no longer tells of a broken file", 10)
        stage.crowd.resume()


async def half_written(stage: Stage) -> None:
    """The file is written in two goes by a program that takes its time; it watches and must not read the half."""
    place = stage.place
    changed = {**place.config, "models": {**place.config["models"], CHANGING: {"cmd": ECHO + " ${MODEL_ID}"}}}
    changed["models"][CHANGING]["env"] = [*place.config["models"][CHANGING]["env"], f"RUN={stage.row.runs}"]
    text = json.dumps(changed)
    cuts = sorted(stage.rng.randrange(len(text)) for _ in range(2))
    with place.config_file.open("w") as file:
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            file.write(text[begin:end])
            file.flush()
            await asyncio.sleep(0.15)
            assert not (told := await place.config_error()), f"a half-written file was read: {told}"
    place.config = changed

    async def is_heeded() -> bool:
        pid = await stage.has_answered(CHANGING)
        with suppress(OSError):
            return f"RUN={stage.row.runs}\0" in Path(f"/proc/{pid}/environ").read_text()
        return False

    await eventually(is_heeded, "the change of a watched file is heeded", 15)
    stage.expected.add(CHANGING)
    assert "failed to reload" not in await place.log(), "a half-written file was read"


# ---- what it stands on


async def bus_killed(stage: Stage) -> None:
    place = stage.place
    pid = await place.main_pid("dbus.service")
    assert pid, "no bus to kill"
    os.kill(pid, signal.SIGKILL)
    await eventually(is_gone(pid), "the bus is gone")


async def bus_restarted(stage: Stage) -> None:
    # Fifty in a row are more than the start limit of the bus allows, which nobody's restarts come near.
    await stage.place.systemctl("reset-failed", "dbus.service", "dbus.socket")
    await stage.place.systemctl("restart", "dbus.service")


async def reexecuted(stage: Stage) -> None:
    await stage.place.systemctl("daemon-reexec")


async def units_reread(stage: Stage) -> None:
    """What an installed package does; what systemd then thinks of our units shows when the daemon looks for them."""
    await stage.place.systemctl("daemon-reload")
    await killed(stage)


async def journald_killed(stage: Stage) -> None:
    pid = await stage.place.main_pid("systemd-journald.service")
    assert pid, "no journald to kill"
    os.kill(pid, signal.SIGKILL)
    await eventually(is_gone(pid), "journald is gone")
    # It has a start limit, which a journal that dies every two seconds reaches.
    await stage.place.systemctl("reset-failed", "systemd-journald.service")
    await stage.place.systemctl("start", "systemd-journald.service")


async def disk_filled(stage: Stage) -> None:
    """No room for the state; then the daemon is killed, and what systemd knows must do."""
    place = stage.place
    assert isinstance(place, Private | Service)
    place.state.mkdir(parents=True, exist_ok=True)
    await output("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=64,mode=777", "faults", str(place.state))
    try:
        filler = place.state / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        await stage.crowd.everyone_has_had_a_turn()
        await killed(stage)
        await place.answers()
        await stage.crowd.everyone_has_had_a_turn()
    finally:
        await output("umount", "--lazy", str(place.state))


async def clock_set(stage: Stage) -> None:
    """Forward by an hour, then back; a model with a ttl of less than that, and none that is over, stays."""
    assert is_slow(), "this clock is not ours to set"
    pid = await stage.has_answered("staying")
    stage.expected.add("staying")
    for change_s in (3600, -3600):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + change_s)
        await stage.crowd.everyone_has_had_a_turn()
    assert await stage.place.main_pid(stage.place.unit("staying")) == pid, "a model was unloaded long before its time"


# ---- the models


async def model_killed(stage: Stage, number: int) -> None:
    place = stage.place
    pid = await place.main_pid(place.unit(STEADY))
    stage.renews(STEADY)
    with stage.excused(*WITH_THE_MODEL, model=STEADY):
        os.kill(pid, number)

        async def is_replaced() -> bool:
            return await place.main_pid(place.unit(STEADY)) not in (0, pid)

        await eventually(is_replaced, f"{STEADY} has another process than {pid}")
    # More than one death in a minute would be a crash loop, and refused for a while.
    (await stage.post(f"/api/models/load/{STEADY}")).succeeded()


async def model_killed_9(stage: Stage) -> None:
    await model_killed(stage, signal.SIGKILL)


async def model_segfaulted(stage: Stage) -> None:
    await model_killed(stage, signal.SIGSEGV)


async def model_out_of_memory(stage: Stage) -> None:
    place = stage.place
    was = await stage.has_answered("hungry")
    answer = await stage.ask_path("/upstream/hungry/allocate")
    assert answer.status == 502, f"{answer.status} {answer.text[:200]}"
    assert "oom-kill" in answer.text, answer.text[:300]
    await eventually(is_gone(was), "the model is gone")
    (await stage.post("/api/models/load/hungry")).succeeded()
    assert await stage.has_answered("hungry") != was
    (await stage.post("/api/models/unload/hungry")).succeeded()
    assert place.unit("hungry") not in await place.units()


async def model_hung(stage: Stage) -> None:
    """It stands still: nobody else notices, and an unload gets rid of it."""
    place = stage.place
    pid = await stage.has_answered("standing")
    os.kill(pid, signal.SIGSTOP)
    await eventually(stands_still(pid), "every thread of the model stands still")
    waiting = asyncio.create_task(stage.ask("standing"))
    await stage.crowd.everyone_has_had_a_turn()
    (await stage.post("/api/models/unload/standing")).succeeded()
    answer = await waiting
    assert answer.status != 200, "a model that stands still has answered"
    await eventually(is_gone(pid), "the model is gone")
    assert await stage.has_answered("standing") != pid
    (await stage.post("/api/models/unload/standing")).succeeded()
    assert place.unit("standing") not in await place.units()


async def health_hung(stage: Stage) -> None:
    """It never says that it is ready: the request is told so, and nothing of it stays."""
    answer = await stage.ask("mute")
    assert answer.status >= 500, f"{answer.status} {answer.text[:200]}"
    assert stage.place.unit("mute") not in await stage.place.units()
    await stage.post("/api/models/unload/mute")


async def crash_loop(stage: Stage) -> None:
    """A model that always dies: four are let in, then one is told to come again; an operator's load clears it."""
    place = stage.place
    works = place.works
    works.unlink(missing_ok=True)
    (await stage.post("/api/models/unload/dying")).succeeded()
    try:
        statuses = [(await stage.ask("dying")).status for _ in range(4)]
        assert all(status in (500, 502) for status in statuses), f"the first four deaths: {statuses}"
        check_refusal(await first_refusal(stage, "dying"))
        works.touch()
        (await stage.post("/api/models/load/dying")).succeeded()
        await stage.has_answered("dying")
        (await stage.post("/api/models/unload/dying")).succeeded()
    finally:
        works.unlink(missing_ok=True)


async def first_refusal(stage: Stage, model: str) -> Answer:
    """Ask until told to come again. Who comes late is let in: the first back-off is 1 s, each later one is doubled."""
    for _ in range(BACK_OFFS):
        answer = await stage.ask(model)
        if answer.status == 503:
            return answer
        assert answer.status in (500, 502), f"{answer.status} {answer.text[:300]}"
    raise AssertionError(f"let in {BACK_OFFS} times after four deaths")


def check_refusal(answer: Answer) -> None:
    wait = answer.headers.get("retry-after", "")
    assert wait.isdigit(), f"Retry-After: {wait!r}"
    assert 1 <= int(wait) <= 60, f"Retry-After: {wait!r}"
    assert "dying" in answer.text, answer.text
    assert "last words" in answer.text, f"the last log lines are not told: {answer.text}"


# ---- crowds of their own


def without_pause(place: Place, tally: Tally) -> list[Client]:
    return [WithoutPause(place, tally, [STEADY]) for _ in range(4)]


def not_too_many(place: Place, tally: Tally) -> list[Client]:
    """For where everything is slow."""
    return [*steady_ones(place, tally), Swapping(place, tally, ["red", "blue"])]


def as_many_as_can_be(place: Place, tally: Tally) -> list[Client]:
    return (not_too_many if is_slow() else all_kinds)(place, tally)


def is_slow() -> bool:
    return "User Mode Linux" in Path("/proc/cpuinfo").read_text()


def nobody_else(place: Place, tally: Tally) -> list[Client]:
    return [Connecting(place, tally, [STEADY])]


EVERYWHERE = (PRIVATE, SYSTEM)
BACK_OFFS = 5  # 1, 2, 4, 8, 16 s: nobody is as late as that five times in a row
DYING = "sh -c 'if test -e WORKS; then exec COMMAND; fi; echo last words; exit 3'"


def faults(works: Path, long_stream_s: float) -> list[Fault]:
    """Return all faults; `works` is the place's file of that name."""
    long_stream = partial(reloaded_during_a_stream, seconds=long_stream_s)
    dying = DYING.replace("WORKS", str(works)).replace("COMMAND", ECHO)
    hungry = {"cmd": f"{SERVER} --memory 256", "systemd": {"MemoryMax": "64M"}}
    starting, passing = {"starting": {"cmd": ECHO}}, {"passing": {"cmd": ECHO, "ttl": TTL_S}}
    return [
        Fault("systemctl restart, 4 clients connecting without pause", restarted, (SYSTEM, USER), 10, 3, without_pause),
        Fault("systemctl restart under load of all kinds", restarted, (SYSTEM, USER), 50, 2, all_but_reloads),
        Fault("daemon killed with -9 at a random moment", killed, EVERYWHERE, 200, 5, all_kinds),
        Fault("daemon killed with -9, and again while it starts", killed_twice, EVERYWHERE, 50, 2, all_kinds),
        Fault("launcher killed with -9", launcher_killed, (SYSTEM, VM), 50, 3, as_many_as_can_be, models=starting),
        Fault(
            "launcher killed with -9, and again while it starts",
            launcher_killed_twice,
            (SYSTEM,),
            50,
            3,
            all_kinds,
            models=starting,
        ),
        Fault("both halves killed with -9", both_killed, (SYSTEM, VM), 50, 3, as_many_as_can_be, models=starting),
        Fault(f"stream of {long_stream_s:g} s through reloads", long_stream, EVERYWHERE, 5, 1, all_kinds),
        Fault("systemctl reload", reloaded, EVERYWHERE, 100, 5, all_kinds),
        Fault("configuration replaced by a broken one", broken, EVERYWHERE, 50, 2, all_kinds),
        Fault(
            "configuration half-written, watched",
            half_written,
            (PRIVATE,),
            50,
            2,
            all_but_reloads,
            flags=("-watch-config",),
        ),
        Fault("dbus-daemon restarted", bus_restarted, (PRIVATE, USER), 50, 2, all_kinds),
        # Not for users, see README.md.
        Fault("dbus-daemon killed", bus_killed, (PRIVATE,), 50, 3, all_kinds),
        Fault("systemctl daemon-reexec", reexecuted, EVERYWHERE, 50, 3, all_kinds),
        Fault("systemctl daemon-reload, daemon killed", units_reread, EVERYWHERE, 50, 2, all_kinds),
        Fault("journald killed", journald_killed, EVERYWHERE, 50, 3, all_kinds),
        Fault("disk of the state directory full, daemon killed", disk_filled, EVERYWHERE, 50, 2, all_kinds),
        Fault("model killed with -9", model_killed_9, EVERYWHERE, 50, 3, all_kinds),
        Fault("model killed with SEGV", model_segfaulted, EVERYWHERE, 50, 2, all_kinds),
        Fault("model out of memory", model_out_of_memory, (VM,), 50, 2, nobody_else, models={"hungry": hungry}),
        Fault(
            "model stands still",
            model_hung,
            EVERYWHERE,
            50,
            1,
            all_kinds,
            models={"standing": {"cmd": ECHO, "unloadTimeout": 1}},
        ),
        Fault(
            "model never gets ready",
            health_hung,
            (PRIVATE,),
            50,
            1,
            all_kinds,
            models={"mute": {"cmd": f"{SERVER} --hang-health"}},
        ),
        Fault("model dies again and again", crash_loop, EVERYWHERE, 50, 2, all_kinds, models={"dying": {"cmd": dying}}),
        Fault(
            "clock set forward and back by an hour",
            clock_set,
            (VM,),
            50,
            2,
            not_too_many,
            models={"staying": {"cmd": ECHO, "ttl": 1800}},
        ),
        Fault(
            "daemon blocked, ended by the watchdog",
            blocked,
            (SYSTEM,),
            50,
            1,
            all_kinds,
            settings=f"WatchdogSec={WATCHDOG_S}",
        ),
        Fault("daemon gone for good", gone_for_good, EVERYWHERE, 50, 1, steady_ones, models=passing),
        Fault(
            "both halves gone, the daemon for good",
            partial(gone_for_good, launcher_too=True),
            (SYSTEM, VM),
            50,
            1,
            steady_ones,
            models=passing,
        ),
    ]
