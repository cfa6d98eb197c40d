"""The daemon's own units are what systemd accepts, and agree with the daemon's time limits."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from llamaswapd import daemon

UNITS = Path(__file__).parents[1] / "units"
SERVICES = sorted(UNITS.rglob("*.service"))


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: str(path.relative_to(UNITS)))
class TestEachService:
    def test_is_accepted_by_systemd(self, path: Path, tmp_path: Path) -> None:
        if not shutil.which("systemd-analyze"):
            pytest.skip("systemd-analyze is not installed")
        copy = tmp_path / path.name
        copy.write_text(path.read_text().replace("/usr/bin/llamaswapd", "/bin/true"))
        scope = "--user" if path.parent.name == "user" else "--system"
        argv = ["systemd-analyze", scope, "verify", "--man=no", "--recursive-errors=no", str(copy)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"XDG_RUNTIME_DIR": str(tmp_path)})
        assert [line for line in done.stderr.splitlines() if path.name in line] == []

    def test_gives_the_daemon_longer_to_stop_than_it_takes(self, path: Path) -> None:
        unit = configparser.ConfigParser(interpolation=None, strict=False)
        unit.read(path)
        assert unit.getint("Service", "TimeoutStopSec") > daemon.FORCED_EXIT_AFTER_S
