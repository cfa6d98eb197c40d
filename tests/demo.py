"""Show the main job being done on this machine: two real models, one address, a swap, and nothing left behind.

usage: make demo [ARGS=--keep]
  --keep   stay up after the tour and print a curl line to try, until Ctrl-C

Standard library only: it talks to the daemon as any client would, and to systemd with systemd's own tools.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

ENGINE = Path(__file__).parent / "engine"
LLAMASWAPD = Path(sys.executable).with_name("llamaswapd")
RED, BLUE = MODELS = ("tiny-red", "tiny-blue")
TIMEOUT_S = 60.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BOOTED = Path("/run/systemd/system").exists()  # sd_booted(3)
INDENT = "  "
JSON = {"Content-Type": "application/json"}
COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ

CONFIG = """\
startPort: {port}
macros:
  llama: {python} {engine}/serve_llama_cpp.py
models:                       # they are in no group, so one runs at a time
  tiny-red:
    cmd: ${{llama}} {folder}/tiny-red.gguf ${{PORT}}
  tiny-blue:
    cmd: ${{llama}} {folder}/tiny-blue.gguf ${{PORT}}
    systemd:
      MemoryMax: 2G
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="stay up after the tour, until Ctrl-C")
    options = parser.parse_args()

    heed_interrupts()
    demo = Demo()
    status = 0
    try:
        with demo.running():
            tour(demo)
            if options.keep:
                keep(demo)
    except KeyboardInterrupt:
        status = 130
    except Failed as failure:
        print(failure, file=sys.stderr)
        status = 1
    left = demo.left_behind()
    title("Stopped")
    show("left behind: " + ("; ".join(left) or "no process, no unit, no cgroup, no file"))
    return 1 if left else status


def tour(demo: Demo) -> None:
    title("The configuration")
    show(demo.config)
    title(f"llamaswapd is up at {demo.url}, with {demo.manager}")

    title(f"Ask {RED}, which is not running")
    ask(demo, RED, "started and answering")
    title("Ask it again")
    ask(demo, RED, "answering")
    title(f"Ask {BLUE}; only one of the two may run, so they swap")
    ask(demo, BLUE, "swapped and answering")

    title("GET /running")
    show(json.dumps(demo.call("GET", "/running"), indent=2))
    title(f"The unit of {BLUE}")
    demo.show_status(BLUE)
    title("A line of each in the journal")
    for model in MODELS:
        demo.show_journal(model)

    title("POST /api/models/unload")
    show(json.dumps(demo.call("POST", "/api/models/unload")))
    show(f"running now: {demo.call('GET', '/running')['running'] or 'none'}")


def ask(demo: Demo, model: str, did: str) -> None:
    """Show an answer as it comes, word by word, and how long it took to begin."""
    asked = time.monotonic()
    words = demo.chat(model, "Say something.")
    print(f"{INDENT}{model}:{next(words)}", end="", flush=True)
    began = time.monotonic()
    print(*words, sep="", flush=True)
    show(faint(f"{did} after {began - asked:.3f} s"))


def keep(demo: Demo) -> None:
    title("Up until Ctrl-C; try")
    question = {"model": RED, "stream": True, "max_tokens": 16, "messages": [{"role": "user", "content": "Hi"}]}
    header = "Content-Type: application/json"
    show(shlex.join(["curl", "-N", f"{demo.url}/v1/chat/completions", "-H", header, "-d", json.dumps(question)]))
    show(f"or any client with the base URL {demo.url}/v1")
    with suppress(KeyboardInterrupt):
        demo.wait()


class Failed(Exception):
    """The demo cannot go on."""


class Demo:
    """A daemon of our own with two models. Its files are in a folder that is made and removed with it."""

    def __init__(self) -> None:
        self._instance = f"demo{os.getpid()}"
        self._port = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self._runtime_dir = runtime_base() / "llamaswapd" / self._instance
        self._environment = environment()
        self._folder: Path | None = None
        self._private_cgroup: Path | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as ending:
            self._folder = folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="llamaswapd-demo-")))
            port = free_ports(len(MODELS))
            self.config = CONFIG.format(python=sys.executable, engine=ENGINE, folder=folder, port=port)
            with interrupts_put_off():
                make_models(folder)
                self._start(folder)
                ending.callback(self._stop)
            self._wait_for_health()
            yield

    def _start(self, folder: Path) -> None:
        self._environment["LLAMASWAPD_DEMO"] = str(folder)  # processes are known by it, whatever they are
        config = folder / "config.yaml"
        config.write_text(self.config)
        options = ["-config", str(config), "-listen", f"127.0.0.1:{self._port}", "-instance", self._instance]
        # In a session of its own, no Ctrl-C reaches it: it is stopped by us, and everybody sees it stop.
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(LLAMASWAPD), *options], stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def _stop(self) -> None:
        ignore_interrupts()
        self._find_manager()
        self._process.terminate()
        self._process.wait(TIMEOUT_S)
        if self._private_cgroup is None and BOOTED:
            self._stop_slices()

    def wait(self) -> None:
        """Wait for the end of the daemon, which is not expected."""
        self._process.wait()
        raise Failed(self._last_words())

    def _wait_for_health(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with suppress(OSError):
                if self._ask("GET", "/health").status == 200:
                    return self._find_manager()
            time.sleep(0.02)
        raise Failed(self._last_words())

    def _last_words(self) -> str:
        return f"llamaswapd did not stay up; it said:\n{self._log.read_text()}"

    # ---- as a client

    def _ask(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        connection.request(method, path, body, JSON)
        return connection.getresponse()

    def call(self, method: str, path: str) -> Any:
        return json.load(self._ask(method, path))

    def chat(self, model: str, prompt: str) -> Iterator[str]:
        """Yield the words of a streamed chat completion as they come."""
        messages = [{"role": "user", "content": prompt}]
        question = {"model": model, "stream": True, "max_tokens": 16, "messages": messages}
        response = self._ask("POST", "/v1/chat/completions", json.dumps(question).encode())
        if response.status != 200:
            raise Failed(f"{model}: {response.status} {response.read().decode()}")
        for line in response:
            if line.startswith(b"data: {"):
                for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                    if word := choice["delta"].get("content"):
                        yield word

    # ---- as an administrator

    def unit(self, model: str) -> str:
        return f"llamaswapd-{self._instance}-model-{model}.service"

    def _find_manager(self) -> None:
        self._inside: list[str] = []
        self._of_user = os.geteuid() != 0
        self.manager = "the user's systemd" if self._of_user else "the system's systemd"
        cgroup = self._runtime_dir / "private" / "cgroup"
        if cgroup.exists():
            self._private_cgroup = Path(cgroup.read_text())
            self._inside = [str(LLAMASWAPD), "private", "-instance", self._instance, "--"]
            self._of_user = True
            self.manager = "a private systemd of its own"

    def show_status(self, model: str) -> None:
        show(self._systemctl("status", "--no-pager", "--lines=0", self.unit(model)))

    def show_journal(self, model: str) -> None:
        """Show the line in which the model's server said where it listens."""
        unit = "--user-unit" if self._of_user else "--unit"
        lines = self._run("journalctl", "--quiet", "--no-pager", f"{unit}={self.unit(model)}").splitlines()
        show("\n".join(line for line in lines if "listening on" in line))

    def _stop_slices(self) -> None:
        """Stop the slices, which stay active when their last unit has gone; the topmost unless others use it."""
        self._systemctl("stop", f"llamaswapd-{self._instance}.slice")
        if self._units("llamaswapd*") == ["llamaswapd.slice"]:
            self._systemctl("stop", "llamaswapd.slice")

    def _units(self, pattern: str) -> list[str]:
        listing = self._systemctl("list-units", "--all", "--plain", "--no-legend", pattern)
        return [line.split()[0] for line in listing.splitlines()]

    def _systemctl(self, *arguments: str) -> str:
        return self._run("systemctl", *(["--user"] if self._of_user else []), *arguments)

    def _run(self, *command: str) -> str:
        """Run one of systemd's tools on the manager that runs the models."""
        argv = [*self._inside, *command]
        env = self._environment
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True).stdout

    # ---- afterwards

    def left_behind(self) -> list[str]:
        """Name everything of ours that is still there."""
        if self._folder is None:
            return []
        left = [f"process {pid}" for pid in processes_naming(str(self._folder))]
        places = (self._folder, self._runtime_dir, self._private_cgroup)
        left += [str(place) for place in places if place is not None and place.exists()]
        if self._private_cgroup is None and BOOTED:
            left += self._units(f"llamaswapd-{self._instance}*")
        return left


def runtime_base() -> Path:
    """Return the folder below which daemons keep what lasts as long as they run."""
    return Path("/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")


def environment() -> dict[str, str]:
    """Return the environment of the daemon and of systemd's tools."""
    ours = {name: value for name, value in os.environ.items() if name != "RUNTIME_DIRECTORY"}
    if os.geteuid() != 0:
        ours["XDG_RUNTIME_DIR"] = str(runtime_base())  # without a session it is not set
    width = shutil.get_terminal_size().columns - len(INDENT)
    return {**ours, "COLUMNS": str(width), "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": str(COLOURS).lower()}


def make_models(folder: Path) -> None:
    """Write the models' files. Their weights are random, so what they say is as well."""
    for seed, model in enumerate(MODELS):
        command = [sys.executable, str(ENGINE / "make_tiny_gguf.py"), str(folder / f"{model}.gguf"), str(seed)]
        if subprocess.run(command, start_new_session=True).returncode:
            raise Failed(f"the file of {model} could not be made")


def free_ports(count: int) -> int:
    """Return the first of so many ports in a row that nobody listens on."""
    while True:
        with ExitStack() as held:
            first = int(held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1])
            with suppress(OSError, OverflowError):
                for port in range(first + 1, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
                return first


def processes_naming(folder: str) -> Iterator[int]:
    """Find the processes that have the folder in their command line or have inherited it in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.encode() in (process / "cmdline").read_bytes() + (process / "environ").read_bytes():
                yield int(process.name)


def heed_interrupts() -> None:
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)


@contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Heed interrupts after the block: what it starts is not known, and cannot be stopped, before."""
    came: list[int] = []
    for number in INTERRUPTS:
        signal.signal(number, lambda number, _: came.append(number))
    yield
    heed_interrupts()
    if came:
        raise KeyboardInterrupt


def ignore_interrupts() -> None:
    for number in INTERRUPTS:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which children would inherit


def title(text: str) -> None:
    print(f"\n{bold('==>')} {bold(text)}", flush=True)


def show(text: str) -> None:
    print(textwrap.indent(text.rstrip(), INDENT), flush=True)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if COLOURS else text


def faint(text: str) -> str:
    return f"\033[2m{text}\033[0m" if COLOURS else text


if __name__ == "__main__":
    sys.exit(main())
