"""swap.md §15 and http.md §21: flags, signals, exit codes, and how everything ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest
from daemon_support import COMMAND, ROOT, alive, daemon, free_ports, model, surroundings, write
from live import mirror, told

pytestmark = pytest.mark.private


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_requests_in_flight_queued_and_loading_may_finish_then_models_stop_and_the_exit_is_0(
    folder: Path, number: int
) -> None:
    models = {"a": model(), "b": model("--ready-when", folder / "go")}
    async with daemon(folder, {"models": models}) as it, it.events() as events:
        async with it.stream("a", until=f"{folder}/end") as stream, it.lines("/logs/stream") as log:
            await stream.next()
            queued = asyncio.create_task(it.chat("b"))
            await events.until_in_flight(2)
            it.signal(number)
            # Event and log streams end, the listener is closed, further signals are ignored.
            async with asyncio.timeout(5):
                while await events._response.content.read(65536):
                    pass
                while await anext(log, ""):
                    pass
            with pytest.raises(aiohttp.ClientOSError):
                await it.chat("a")
            it.signal(number)
            it.signal(signal.SIGHUP)
            (folder / "end").touch()
            assert (await stream.rest())[-1] == "[DONE]"
        (folder / "go").touch()
        assert (await queued).status == 200
        assert await it.exited() == 0
        assert "reloading" not in it.log


@pytest.mark.ours("models are units")
async def test_models_never_outlive_a_regular_exit(folder: Path) -> None:
    models = {"a": model("--fork", unloadTimeout=1), "b": mirror()}
    group = {"g": {"swap": False, "members": ["a", "b"]}}
    async with daemon(folder, {"models": models, "groups": group}) as it:
        pids = [(await told(it, name))["pid"] for name in "ab"] + it.pids("llamaswapd-it-model-a.service")
        it.signal(signal.SIGTERM)
        assert await it.exited() == 0
        assert not alive(pids)


@pytest.mark.skipif("LLAMASWAPD_TEST_LONG" not in os.environ, reason="takes half a minute; set LLAMASWAPD_TEST_LONG")
@pytest.mark.timeout(90)
async def test_the_budget_for_requests_and_models_together_is_30_seconds(folder: Path) -> None:
    """A client that never ends, and a model that ignores SIGTERM."""
    config = {"models": {"a": model("--deaf", unloadTimeout=60)}}
    async with daemon(folder, config) as it, it.stream("a", until="/never") as stream:
        await stream.next()
        reading = asyncio.create_task(stream.rest())
        began = time.monotonic()
        it.signal(signal.SIGTERM)
        assert await it.exited() == 0
        assert 29 < time.monotonic() - began < 34
        with pytest.raises(aiohttp.ClientPayloadError):
            await reading


# ---- the command line


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, which it should find by itself."""
    argv = [*COMMAND, *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, env=surroundings(folder), capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("flag", ["-version", "--version", "-version=true", "--version=true"])
def test_the_version_is_one_line_and_exit_0(folder: Path, flag: str) -> None:
    done = run(flag, folder=folder)
    assert done.returncode == 0
    assert re.fullmatch(r"version: \S+ \(.+\), built at .+\n", done.stdout)


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_the_usage_is_exit_0_and_names_every_flag(folder: Path, flag: str) -> None:
    done = run(flag, folder=folder)
    assert done.returncode == 0
    text = done.stdout + done.stderr
    for name in ("config", "config-dir", "listen", "tls-cert-file", "tls-key-file", "watch-config", "version"):
        assert f"-{name}" in text


def test_an_unknown_flag_is_exit_2_with_the_usage_on_stderr(folder: Path) -> None:
    done = run("-nonsense", folder=folder)
    assert done.returncode == 2
    assert "-nonsense" in done.stderr
    assert "usage" in done.stderr.lower()


NO_SOURCE = "at least one of -config or -config-dir must be provided"
ONE_OF_TWO = "both -tls-cert-file and -tls-key-file must be provided for TLS"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], NO_SOURCE),
        (["positional"], NO_SOURCE),
        (["-version=false"], NO_SOURCE),
        (["-config", "c.yaml", "-tls-cert-file", "x"], ONE_OF_TWO),
        (["-config", "c.yaml", "-tls-key-file=x"], ONE_OF_TWO),
        (["--config=bad.yaml"], "cannot unmarshal !!str `soon` into int"),
        (["-config", "missing.yaml"], "missing.yaml"),
        (["-config-dir", "empty"], "no configuration sources found"),
        (["-config", "conf.d/a.yaml", "-config-dir", "conf.d"], "is also present in -config-dir"),
        (["-config", "store.yaml"], "store.path: "),
    ],
)
def test_what_cannot_be_used_is_exit_1_with_the_reason_on_stderr(folder: Path, flags: list[str], message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "conf.d").mkdir()
    for name in ("c.yaml", "conf.d/a.yaml"):
        write(folder / name, {})
    (folder / "bad.yaml").write_text("healthCheckTimeout: soon")
    (folder / "store.yaml").write_text(f"store: {{path: {folder}}}")
    arguments = [flag.replace("=bad", f"={folder}/bad") for flag in flags]
    paths = {"c.yaml", "missing.yaml", "empty", "conf.d", "conf.d/a.yaml", "store.yaml"}
    done = run(*(folder / flag if flag in paths else flag for flag in arguments), folder=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_in_use_is_exit_1(folder: Path) -> None:
    write(folder / "c.yaml", {})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("-config", folder / "c.yaml", "-listen", address, folder=folder)
    assert done.returncode == 1
    assert "address already in use" in done.stderr.lower()


@pytest.mark.ours("the log tells the port that it got")
async def test_an_empty_configuration_is_valid_and_unless_it_is_loopback_a_notice_is_logged(folder: Path) -> None:
    (folder / "conf.d").mkdir()
    (folder / "conf.d" / "a.yaml").write_text("# nothing\n")
    async with daemon(folder, {}, "-listen", ":0", "--config-dir", str(folder / "conf.d")) as it:
        assert "-listen" in await it.logged(" reach")
        it.url = it.url.replace("[::]", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
        assert (await it.ask("/v1/models")).json() == {"object": "list", "data": []}
        assert (await it.ask("/running")).json() == {"running": []}
        assert (await it.ask("/unload")).body == b"OK"


@pytest.mark.ours("what was left is adopted or stopped")
async def test_what_a_killed_daemon_left_does_not_stand_in_the_way_of_the_next(folder: Path) -> None:
    config = {"startPort": free_ports(), "models": {"a": mirror()}}
    async with daemon(folder, config) as first:
        pid = (await told(first, "a"))["pid"]
        first.signal(signal.SIGKILL)
    async with daemon(folder, config) as second:
        assert (await told(second, "a"))["pid"] == pid
