"""Do to the program what may happen to it, and print a table of what that has cost.

usage: python -m tests.faults [OPTIONS]         as root; `make faults`, `make faults RUNS=50`

Without --runs it is the short form, some minutes. With --runs 50 each fault strikes as often as it says in `faults.py`,
50 times or more; with another number, in proportion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import ExitStack
from itertools import starmap
from pathlib import Path
from typing import Any

from tests.faults.elsewhere import SUITES, NoBed, in_container, in_vm
from tests.faults.faults import PRIVATE, SYSTEM, USER, VM, faults
from tests.faults.places import Place, Private, Service, UserService
from tests.faults.stage import Fault, Row, Stage
from tests.faults.table import table

FULL = 50
RESULT = "RESULT "
PLACES = ("private", *(place for suite in SUITES for place in (suite, f"{suite}, user")), "vm")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="See what faults cost.")
    parser.add_argument("--runs", type=int, default=0, help="50: full length; 0: the short form")
    parser.add_argument(
        "--where",
        type=named,
        default=PLACES,
        help=f"some of {'; '.join(PLACES)}, as a regular expression (default: all)",
    )
    parser.add_argument("--only", default="", help="faults whose name matches this regular expression")
    parser.add_argument("--seed", default=str(int(time.time())), help="for the random moments")
    parser.add_argument("--out", type=Path, default=Path("build/faults.md"), help="the table (default: %(default)s)")
    # More than the machine has cores for, and its slowness is taken for the program's.
    cores = max(2, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=cores, help="places at a time (default: as many as cores)")
    parser.add_argument(
        "--here", default="", help="run in this place, which is here: private:NAME, system:NAME, user:NAME, vm:NAME"
    )
    options = parser.parse_args()
    return asyncio.run(ended_by_signals(here(options) if options.here else everywhere(options)))


def named(pattern: str) -> Sequence[str]:
    """Return the places of which all of the name matches."""
    if places := [place for place in PLACES if re.fullmatch(pattern, place)]:
        return places
    raise argparse.ArgumentTypeError(f"{pattern!r} matches none of: {'; '.join(PLACES)}")


async def ended_by_signals(work: Coroutine[Any, Any, int]) -> int:
    """Do it; a signal that ends it has everything taken down first."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 1


async def here(options: argparse.Namespace) -> int:
    """Play in the place that this process is in; each row is told as soon as it is known."""
    kind, _, name = options.here.partition(":")
    place = place_of(kind, name)
    try:
        for fault in chosen(kind, place.works, options):
            print(f"=== {fault.name}, {place.name}", flush=True)
            row = await Stage(fault, place, options.seed).play(runs(fault, options.runs))
            print(f"{RESULT}{json.dumps(row.as_json())}", flush=True)
    finally:
        if isinstance(place, Private):
            place.close()
    return 0


def place_of(kind: str, name: str) -> Place:
    if kind == PRIVATE:
        return Private()
    return UserService(name) if kind == USER else Service(name)


def chosen(kind: str, works: Path, options: argparse.Namespace) -> list[Fault]:
    stream_s = 60 if options.runs >= FULL else 8
    return [each for each in faults(works, stream_s) if kind in each.where and re.search(options.only, each.name)]


def runs(fault: Fault, wanted: int) -> int:
    return math.ceil(fault.full * wanted / FULL) if wanted else fault.short


async def everywhere(options: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("only root can do this", file=sys.stderr)
        return 2
    began = time.monotonic()
    print(f"seed {options.seed}", flush=True)
    turn = asyncio.Semaphore(options.jobs)

    async def played(place: str, kinds: Sequence[str]) -> list[Row]:
        async with turn:
            return await rows_of(place, kinds, options)

    plays = beds(options.where).items()
    rows = [row for each in await asyncio.gather(*starmap(played, plays)) for row in each]
    text = table(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(f"\n{text}\n{time.monotonic() - began:.0f} s; the table is in {options.out}")
    return 0 if rows and all(row.is_good for row in rows) else 1


def beds(places: Iterable[str]) -> dict[str, list[str]]:
    """Return what is to be booted, and as what to play `--here` there: a user's place is in the system's container."""
    found: dict[str, list[str]] = {}
    for place in places:
        bed, _, is_users = place.partition(", ")
        kind = bed if bed in (PRIVATE, VM) else USER if is_users else SYSTEM
        found.setdefault(bed, []).append(f"{kind}:{place}")
    return found


async def rows_of(bed: str, kinds: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """Play in places that are somewhere else, as seen from here."""
    passed_on = ("--runs", str(options.runs), "--seed", options.seed, "--only", options.only)
    plays = [("-m", "tests.faults", "--here", kind, *passed_on) for kind in kinds]
    if bed == PRIVATE:
        return await told(bed, (sys.executable, *plays[0]))
    if bed == VM:
        return await told(bed, in_vm("bookworm", plays[0]))
    try:
        with ExitStack() as stack:
            return await told(bed, await asyncio.to_thread(stack.enter_context, in_container(bed, plays)))
    except NoBed as error:
        return [Row("all", bed, problems=[f"no container: {error}"])]


async def told(place: str, argv: Iterable[str]) -> list[Row]:
    """Run a command that plays; pass on what it says, and return the rows that it tells of."""
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *argv, env=environ, stdout=pipe, stderr=asyncio.subprocess.STDOUT, limit=2**24
    )
    assert process.stdout
    rows = []
    try:
        async for line in process.stdout:
            text = line.decode(errors="replace").rstrip()
            if text.startswith(RESULT):
                rows.append(Row(**json.loads(text.removeprefix(RESULT))))
                text = summary(rows[-1])
            print(f"[{place}] {text}", flush=True)
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if status := await process.wait():
        rows.append(Row("the harness itself", place, problems=[f"exit status {status}"]))
    return rows


def summary(row: Row) -> str:
    verdict = "ok" if row.is_good else "FAILED"
    return f"{verdict}: {row.fault}, {row.where}: {row.runs} runs, {row.sent} requests, {row.seconds:g} s"


if __name__ == "__main__":
    sys.exit(main())
