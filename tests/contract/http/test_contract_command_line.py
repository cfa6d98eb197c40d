"""Contract: flags and exit statuses (http.md, 21). Signals and reloads are in the suite of the lifecycle."""

from __future__ import annotations

import re
import socket
import subprocess
from pathlib import Path

import pytest
from daemon_support import COMMAND, ROOT, surroundings, write

pytestmark = pytest.mark.private


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    argv = [*COMMAND, *map(str, arguments)]
    return subprocess.run(argv, cwd=ROOT, env=surroundings(folder), capture_output=True, text=True, timeout=20)


@pytest.mark.parametrize("flag", ["-version", "--version", "-version=true", "--version=true"])
def test_the_version_is_one_line(tmp_path: Path, flag: str) -> None:
    done = run(flag, folder=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"version: \S+ \(\S+\), built at \S.*\n", done.stdout)


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_help_names_every_flag(tmp_path: Path, flag: str) -> None:
    done = run(flag, folder=tmp_path)
    told = done.stdout + done.stderr
    assert done.returncode == 0
    names = ("config", "config-dir", "listen", "tls-cert-file", "tls-key-file", "watch-config", "version")
    assert [name for name in names if f"-{name}" not in told] == []


@pytest.mark.parametrize("flags", [["-nonsense"], ["--conf", "x"], ["-version=maybe"], ["-config"]])
def test_a_wrong_flag_is_exit_status_2_with_the_usage(tmp_path: Path, flags: list[str]) -> None:
    done = run(*flags, folder=tmp_path)
    assert done.returncode == 2
    assert "-listen" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "at least one of -config or -config-dir must be provided"),
        (["positional"], "at least one of -config or -config-dir must be provided"),
        (["-watch-config=false"], "at least one of -config or -config-dir must be provided"),
        (["-config", "none.yaml"], "none.yaml"),
        (["--config=none.yaml"], "none.yaml"),
        (
            ["-config", "c.yaml", "-tls-cert-file", "x"],
            "both -tls-cert-file and -tls-key-file must be provided for TLS",
        ),
        (["-config", "c.yaml", "-tls-key-file=x"], "both -tls-cert-file and -tls-key-file must be provided for TLS"),
        (["-config", "wrong.yaml"], "startPort must be greater than 1"),
        (["-config", "stored.yaml"], "store.path"),
        (["-config", "c.yaml", "-listen", "{taken}"], "in use"),
    ],
)
def test_what_cannot_be_used_is_exit_status_1_with_the_reason(tmp_path: Path, flags: list[str], message: str) -> None:
    write(tmp_path / "c.yaml", {"models": {}})
    write(tmp_path / "wrong.yaml", {"startPort": 0})
    write(tmp_path / "stored.yaml", {"store": {"path": str(tmp_path)}})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        given = [re.sub(r"(\w+\.yaml)", rf"{tmp_path}/\1", flag).replace("{taken}", address) for flag in flags]
        done = run(*given, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
