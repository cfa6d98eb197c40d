#!/usr/bin/env python3
"""Measure llamaswapd against nginx, a Go stand-in for llama-swap and the upstream itself, and judge the result.

    make bench                                  all workloads, three rounds, about half an hour
    make bench ARGS="--quick"                   one short round of a few, for a look
    make bench ARGS="--workloads w1c16,w2p256"

Sets itself up (nginx and Go from packages, everything else from here), runs `run.py` interleaved, then the cold start,
and prints every ratio with what it has to reach. Results go to `bench/results/last.json`; the run before is kept as
`previous.json`, and what has changed by more than the noise is named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llamaswapd import compiled

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
PORT = 9300
UPSTREAM_PORT = 9001
NOISE = 0.10  # two runs of the same program on a shared machine differ by this much

WORKLOADS = "w1c1,w1c16,w1c128,w2p64,w2p256,w2u16,w3j,w3jl,w3mp,w5close"
QUICK = "w1c1,w1c16,w2p256,w3j,w5close"

CONFIG = f"""
apiKeys: ["sk-bench"]
models:
  m1:
    cmd: sleep 100000
    proxy: http://127.0.0.1:{UPSTREAM_PORT}
    checkEndpoint: none
    concurrencyLimit: 100000
"""

# What has to be reached: (workload, figure, against, most or least, how much). Figures as run.py writes them.
GOALS = [
    *((workload, figure, *goal)
      for workload in ("w1c16", "w1c128")
      for figure, *goal in (("rps", "nginx", "least", 0.75), ("rps", "go-standin", "least", 2.5),
                            ("cpu_us_req", "nginx", "most", 1.5), ("cpu_us_req", "go-standin", "most", 0.4))),
    ("w1c1", "p50_us", "nginx", "most", 1.5), ("w1c1", "p50_us", "go-standin", "most", 0.6),
    ("w1c1", "p99_us", "nginx", "most", 2.0), ("w1c1", "p99_us", "go-standin", "most", 0.8),
    ("w2p256", "cpu_us_tok", "nginx", "most", 1.3), ("w2p256", "cpu_us_tok", "go-standin", "most", 0.9),
    ("w2p256", "tokdelay_p99_us", "nginx", "most", 1.5), ("w2p256", "tokdelay_p99_us", "go-standin", "most", 1.0),
    *((workload, "rps", against, "least", goal)
      for workload in ("w3j", "w3jl", "w3mp") for against, goal in (("nginx", 1.0), ("go-standin", 1.5))),
    ("w5close", "rps", "nginx", "least", 0.7), ("w5close", "rps", "go-standin", "least", 1.2),
]  # fmt: skip
ADDED = {"p50_us", "p99_us", "tokdelay_p99_us"}  # of these, what `direct` takes is subtracted: the proxy adds the rest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of a few workloads")
    parser.add_argument("--workloads", help="comma separated; `run.py --workloads list` names them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    options = parser.parse_args()
    workloads = options.workloads or (QUICK if options.quick else WORKLOADS)
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)

    # First of all: the many connections of the workloads leave the kernel with lists that are long for a while.
    cold = {} if options.quick or options.workloads else cold_start()
    with tempfile.TemporaryDirectory(prefix="llamaswapd-bench-") as folder:
        lines = measure(Path(folder), workloads, rounds, seconds)
    medians = medians_of(lines)
    RESULTS.mkdir(exist_ok=True)
    last, previous = RESULTS / "last.json", RESULTS / "previous.json"
    if last.exists():
        last.replace(previous)
    last.write_text(json.dumps({"medians": medians, "cold_start": cold}, indent=1, sort_keys=True) + "\n")
    print(f"\n## What has to be reached\n\nllamaswapd's modules are {compiled.state()}.\n")
    missed = judge(medians)
    if previous.exists():
        compare(json.loads(previous.read_text())["medians"], medians)
    print(f"\n{missed} missed; results in {last.relative_to(ROOT)}")
    return 0


def measure(folder: Path, workloads: str, rounds: int, seconds: float) -> list[dict[str, object]]:
    """Run all workloads on all programs; return run.py's lines."""
    config, results = folder / "config.yaml", folder / "results.jsonl"
    config.write_text(CONFIG)
    go = shutil.which("go") or str(Path(sys.executable).with_name("go"))
    program = f"{sys.executable} -m llamaswapd -config {config} -listen 127.0.0.1:{PORT} -instance bench{os.getpid()}"
    subprocess.run(
        [sys.executable, HERE / "run.py", "--build", "--go", go, "--bin", HERE / "results" / "bin",
         "--builtin", "direct,nginx,go-standin", "--cmd", f"llamaswapd={PORT}:{program}",
         "--upstream-port", str(UPSTREAM_PORT), "--workloads", workloads, "--rounds", str(rounds),
         "--seconds", str(seconds), "--ref", "nginx,go-standin", "--out", results],
        check=True, cwd=ROOT,
    )  # fmt: skip
    return [json.loads(line) for line in results.read_text().splitlines()]


def medians_of(lines: list[dict[str, object]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return workload → program → figure → median over the rounds."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for line in lines:
        for figure, value in line.items():
            if isinstance(value, int | float) and figure != "round":
                of_program = figures.setdefault(str(line["workload"]), {}).setdefault(str(line["label"]), {})
                of_program.setdefault(figure, []).append(float(value))
    return {
        workload: {
            program: {figure: statistics.median(values) for figure, values in of_program.items()}
            for program, of_program in programs.items()
        }
        for workload, programs in figures.items()
    }


def judge(medians: dict[str, dict[str, dict[str, float]]]) -> int:
    """Print each goal with what was reached; return how many were missed."""
    missed = 0
    print("| workload | figure | against | ratio | goal | |\n|---|---|---|---|---|---|")
    for workload, figure, against, side, goal in GOALS:
        programs = medians.get(workload, {})
        ours, theirs = (programs.get(name, {}).get(figure) for name in ("llamaswapd", against))
        if ours is None or not theirs:
            continue
        if figure in ADDED:
            direct = programs.get("direct", {}).get(figure, 0.0)
            ours, theirs = max(ours - direct, 0.0), max(theirs - direct, 1e-9)
        ratio = ours / theirs
        is_reached = ratio <= goal if side == "most" else ratio >= goal
        missed += not is_reached
        sign = "≤" if side == "most" else "≥"
        name = f"{figure} added" if figure in ADDED else figure
        print(f"| {workload} | {name} | {against} | {ratio:.2f} | {sign} {goal} | {'' if is_reached else 'MISSED'} |")
    return missed


def compare(before: dict[str, dict[str, dict[str, float]]], now: dict[str, dict[str, dict[str, float]]]) -> None:
    """Name what has changed since the last run: CPU for each request or token, the steadiest figure."""
    print("\n## Against the run before\n")
    changed = False
    for workload, programs in now.items():
        for figure in ("cpu_us_req", "cpu_us_tok"):
            ratios = []
            for program in ("llamaswapd", "nginx"):
                old = before.get(workload, {}).get(program, {}).get(figure)
                new = programs.get(program, {}).get(figure)
                ratios.append(new / old if old and new else None)
            ours, yardstick = ratios
            if ours and yardstick and abs(ours / yardstick - 1) > NOISE:
                changed = True
                print(f"- {workload}: {figure} {ours / yardstick - 1:+.0%}, measured by nginx's own change")
    if not changed:
        print(f"nothing beyond ±{NOISE:.0%}")


def cold_start() -> dict[str, float]:
    """Return what a cold start takes, and what starting its unit alone takes, in milliseconds."""
    output = subprocess.run(
        [sys.executable, HERE / "cold_start.py", "--json"], check=True, cwd=ROOT, capture_output=True, text=True
    ).stdout
    print("\n## Cold start\n")
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    for what, value in figures.items():
        print(f"- {what}: {value:.1f} ms")
    added = figures["cold start"] - figures["unit alone"]
    print(f"- added to the unit's own start: {added:.1f} ms, goal ≤ 40 {'' if added <= 40 else 'MISSED'}")
    return figures


if __name__ == "__main__":
    sys.exit(main())
