"""The programs that the suite of the HTTP contract asks: few, because each takes a second to start.

`house` has models of every kind, side by side; `locked` has keys and differs in what only one program can be. A test
that changes what others see (a profile, a model that is unloaded) puts it back, or has a model of its own here.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from blackbox import Json, Program, echo, eventually, serving
from daemon_support import MODELS, can_listen, command, free_ports, model

from llamaswapd.systemd.private import PrivateManager

CAPABLE = {"in": ["text", "image"], "out": ["text"], "tools": True, "context": 4096}
NOWHERE = "http://127.0.0.1:9"  # nobody listens on the discard port


@pytest.fixture(scope="session")
def peer_url() -> Iterator[str]:
    """Another machine's server, as far as the program can tell."""
    port = free_ports()
    argv = [sys.executable, "-S", "-E", str(MODELS / "echo.py"), str(port)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        eventually(lambda: not can_listen(port))
        yield f"http://127.0.0.1:{port}"
        process.kill()


def house_models() -> Json:
    return {
        "m": echo(aliases=["alias", "other/alias"]),
        "n": echo(),
        "author/model:Q4_K M": echo(),
        "renamed": echo(useModelName="real-name"),
        "filtered": echo(
            filters={
                "stripParams": "temperature, top_p, model, nested.gone",
                "setParams": {"stop": ["a"], "kwargs.think": False, "model": "never"},
                "setParamsByID": {"filtered:hot": {"temperature": 1.5, "stop": ["b"]}},
            },
        ),
        "prefixed": echo(proxy="http://127.0.0.1:${PORT}/base"),
        "recorded": echo(),
        "sorted": echo(),
        "streams": model(),
        "comfyui_auto": echo(),
        "sockets": echo(compat={"ignoreWebsockets": True}),
        "one": echo(concurrencyLimit=1),
        "spill-a": echo(),
        "spill-b": echo(),
        "never-used": echo(
            aliases=["never-alias"],
            name=" A Name ",
            description=" What it does ",
            ttl=77,
            metadata={"tier": 3, "context_length": 5, "type": "mine"},
            capabilities=CAPABLE,
            filters={"setParamsByID": {"never-used:hot": {"temperature": 1}}},
        ),
        "hidden": echo(unlisted=True),
    }


def house_config(peer_url: str) -> Json:
    models = house_models()
    return {
        "models": models,
        "groups": {"all": {"swap": False, "exclusive": False, "members": [*models]}},
        "logToStdout": "both",
        "selectors": {
            "first": {"strategy": "pin", "targets": ["m", "n"], "name": "First", "metadata": {"x": 1}},
            "warmest": {"strategy": "warm", "targets": ["never-used", "m"]},
            "spilling": {"strategy": "spillover", "targets": ["spill-a", "spill-b"], "settings": {"spillover": 1}},
            "unlisted-selector": {"strategy": "pin", "targets": ["m"], "unlisted": True},
        },
        "profiles": {
            "work": {
                "description": "for work",
                "pins": {"llm": "m", "alias": "n", "chosen": "first", "off": None, "away": "far/p/q"},
            },
            "empty-handed": {"pins": {"m": ""}},
        },
        "peers": {
            "far": {
                "proxy": f"{peer_url}/base",
                "apiKey": "peer-key",
                "models": ["p/q", "shared"],
                "filters": {"stripParams": "temperature", "setParams": {"extra": {"deep": 1}}},
            },
            "near": {"proxy": peer_url, "models": ["shared", "plain"]},
            "dead": {"proxy": NOWHERE, "models": ["ghost"]},
        },
        "routing": {"scheduler": {"use": "fifo", "settings": {"fifo": {"priority": {"recorded": 5}}}}},
        "ui": {"activity": {"session_id": ["X-My-Session"]}},
    }


@pytest.fixture(scope="session")
def house(private: PrivateManager, peer_url: str) -> Iterator[Program]:
    """A program without keys, with models that run side by side."""
    with serving(house_config(peer_url)) as program:
        yield program


@pytest.fixture(scope="session")
def locked(private: PrivateManager, peer_url: str) -> Iterator[Program]:
    """A program with keys, without a performance monitor, captures or much of a memory, that lists aliases."""
    config = {
        "apiKeys": ["secret", "with:colon"],
        "models": {"m": echo(aliases=["alias", "  ", " spaced "], name="M")},
        "peers": {"near": {"proxy": peer_url, "models": ["plain"]}},
        "includeAliasesInList": True,
        "performance": {"disabled": True},
        "captureBuffer": 0,
        "metricsMaxInMemory": 3,
    }
    with serving(config) as program:
        yield program


@pytest.fixture(scope="session")
def broken(private: PrivateManager) -> Iterator[Program]:
    """A program whose models fail in one way each."""
    leaves = f"{sys.executable} -S -E -c exit(3) ${{PORT}}"
    models = {
        "no-command": {"cmd": "", "proxy": NOWHERE},
        "no-proxy": {"cmd": "sleep 60", "proxy": ""},
        "no-program": command("/does/not/exist --some 'flag with blanks'"),
        "no-permission": command("/etc/passwd"),
        "leaves": command(leaves),
        "leaves-loading": command(leaves, sendLoadingState=True),
        "never-ready": model("--hang-health"),
        "loads": model("--ready-after", 0.3, sendLoadingState=True),
        "dies": echo(),
        "deaf": model("--deaf", unloadTimeout=1),
    }
    config = {
        "models": models,
        "groups": {"all": {"swap": False, "exclusive": False, "members": [*models]}},
        "selectors": {"only-deaf": {"strategy": "spillover", "targets": ["deaf"]}},
    }
    with serving(config) as program:
        yield program
