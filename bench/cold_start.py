#!/usr/bin/env python3
"""How long a client waits for a model that is not running: cold starts, swaps, and how soon readiness is noticed.

    bench/cold_start.py [-n 30] [--manager private] [--json]

Starts llamaswapd with servers that are ready as soon as they run (a bare socket in `python -I -S`, about 15 ms), and
prints medians and worst cases in milliseconds, from the client's connect to the first byte of the answer. Readiness: a
server that answers 503 until a random moment, from that moment to the first byte. Nothing else should load the machine.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llamaswapd.config.schema import ModelConfig
from llamaswapd.systemd.connect import connect

ROOT = Path(__file__).resolve().parents[1]
INSTANT = ROOT / "tests" / "models" / "instant.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=30, help="how often each is measured")
    parser.add_argument("--manager", default="auto")
    parser.add_argument("--json", action="store_true", help="print the medians once more, as JSON")
    options = parser.parse_args()

    delays = [random.uniform(0.05, 3.0) for _ in range(options.n)]
    models = {"one": 0.0, "two": 0.0} | {f"late{number}": delay for number, delay in enumerate(delays)}
    config = {
        "models": {
            name: {"cmd": f"{sys.executable} -I -S {INSTANT} ${{PORT}} {delay}", "proxy": "http://127.0.0.1:${PORT}"}
            for name, delay in models.items()
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config))  # YAML holds JSON
        port = free_port()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "llamaswapd", "-config", file, "-listen", f"127.0.0.1:{port}",
             "-instance", f"bench{os.getpid()}", "-manager", options.manager],
            cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(port)
            medians = {"cold start": show("cold start", [cold(port) for _ in range(options.n)])}
            request(port, "one")
            swaps = [request(port, name)[0] for _ in range(options.n // 2) for name in ("two", "one")]
            medians["swap"] = show("swap", swaps)
            lags = []
            for name in models:
                if name.startswith("late"):
                    _, answer, arrived = request(port, name)
                    lags.append(arrived - json.loads(answer)["ready_at"])
            medians["ready noticed"] = show("ready noticed", lags)
        finally:
            daemon.terminate()
            daemon.wait()
        medians["unit alone"] = show("unit alone", asyncio.run(units_alone(options, Path(folder))))
    if options.json:
        print(json.dumps(medians))


async def units_alone(options: argparse.Namespace, folder: Path) -> list[float]:
    """Return seconds from the order to start a unit to the first byte of its server."""
    port = free_port()
    model = ModelConfig(
        id="alone", cmd=f"{sys.executable} -I -S {INSTANT} {port} 0", proxy=f"http://127.0.0.1:{port}", unload_timeout=5
    )
    seconds = []
    async with connect(options.manager, f"bench{os.getpid()}", folder, lambda: {"alone": model}) as backend:
        for _ in range(options.n):
            began = time.monotonic()
            unit = await backend.start(model)
            while True:
                try:
                    request(port, "alone")
                    break
                except OSError:
                    await asyncio.sleep(0)
            seconds.append(time.monotonic() - began)
            await unit.stop(5)
    return seconds


def cold(port: int) -> float:
    unload(port)
    return request(port, "one")[0]


def request(port: int, model: str) -> tuple[float, bytes, float]:
    """Return seconds to the first byte, the answer, and the moment of the first byte."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps({"model": model}), {"Content-Type": "application/json"}
    )
    response = connection.getresponse()
    arrived = time.monotonic()
    answer = response.read()
    assert response.status == 200, answer
    return arrived - began, answer, arrived


def unload(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/api/models/unload")
    connection.getresponse().read()


def wait_for(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)


def show(what: str, seconds: list[float]) -> float:
    values = sorted(1000 * value for value in seconds)
    median = statistics.median(values)
    print(
        f"{what:14} median {median:6.1f} ms   worst {values[-1]:6.1f} ms   best {values[0]:6.1f} ms   n={len(values)}"
    )
    return median


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()
