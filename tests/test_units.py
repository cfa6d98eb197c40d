"""The daemon's own units are what systemd accepts, agree with each other, and refuse nobody across restarts."""

from __future__ import annotations

import asyncio
import configparser
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llamaswapd import daemon
from llamaswapd.systemd import delegation
from llamaswapd.systemd.private import PrivateManager

UNITS = Path(__file__).parents[1] / "units"
FOLDERS = (UNITS, UNITS / "user")
DBUS = UNITS.parent / "packaging" / "dbus"
FILES = sorted(path for path in UNITS.rglob("*") if path.suffix in (".service", ".socket"))

DAEMON = """
import asyncio, os, signal
from llamaswapd.systemd import service

async def main():
    async def answer(reader, writer):
        await reader.readline()
        writer.write(f"{writer.get_extra_info('sockname')[1]} {names} {os.getpid()}\\n".encode())
        writer.close()

    passed = service.passed_sockets()
    names = ",".join(each.name for each in passed)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    for each in passed:
        await asyncio.start_server(answer, sock=each.socket)
    service.Notifier().ready()
    await stop.wait()
    for each in passed:
        asyncio.get_running_loop().remove_reader(each.socket.fileno())
    await asyncio.sleep(0.1)

asyncio.run(main())
"""


def settings(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.read(path)
    return unit


def of_folder(folder: Path) -> tuple[configparser.ConfigParser, configparser.ConfigParser]:
    return settings(folder / "llamaswapd.service"), settings(folder / "llamaswapd.socket")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(UNITS)))
def test_each_unit_is_accepted_by_systemd(path: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for each in path.parent.glob(f"{path.stem}.*"):
        (tmp_path / each.name).write_text(each.read_text().replace("/usr/bin/llamaswapd", "/bin/true"))
    scope = "--user" if path.parent.name == "user" else "--system"
    argv = ["systemd-analyze", scope, "verify", "--man=no", "--recursive-errors=no", str(tmp_path / path.name)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    # Only systemd 254 and later know ImportCredential=; the others do without.
    said = [line for line in done.stderr.splitlines() if path.stem in line and "'ImportCredential'" not in line]
    assert said == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
class TestEachFlavour:
    def test_gives_the_daemon_longer_to_stop_than_it_takes(self, folder: Path) -> None:
        service, _ = of_folder(folder)
        assert service.getint("Service", "TimeoutStopSec") > daemon.FORCED_EXIT_AFTER_S

    def test_listens_where_the_daemon_would_listen_without_a_socket_unit(self, folder: Path) -> None:
        service, _ = of_folder(folder)
        address = service["Service"]["ExecStart"].partition("-listen ")[2]
        assert f"ListenStream={address}\n" in (folder / "llamaswapd.socket").read_text()

    def test_wants_its_socket_first_but_does_without(self, folder: Path) -> None:
        service, _ = of_folder(folder)
        assert "Requires" not in service["Unit"]
        for key in ("Wants", "After"):
            assert "llamaswapd.socket" in service["Unit"][key].split()

    def test_leaves_no_socket_behind(self, folder: Path) -> None:
        _, listener = of_folder(folder)
        assert listener["Socket"]["RemoveOnStop"] == "yes"

    def test_is_limited_by_no_number_of_starts(self, folder: Path) -> None:
        service, listener = of_folder(folder)
        assert service["Unit"]["StartLimitIntervalSec"] == listener["Socket"]["TriggerLimitIntervalSec"] == "0"


class TestTheTwoHalves:
    def test_agree_on_names_and_places(self) -> None:
        front, launcher = settings(UNITS / "llamaswapd.service"), settings(UNITS / delegation.UNIT)
        assert launcher["Service"]["BusName"] == delegation.NAME
        assert f"/run/{launcher['Service']['RuntimeDirectory']}" == str(delegation.LAUNCHER_DIR)
        assert front["Service"]["User"] == delegation.USER
        assert f"/run/{front['Service']['RuntimeDirectory']}/default" == str(delegation.RUNTIME_DIR)
        assert f"/var/lib/{front['Service']['StateDirectory']}/state.json" == str(delegation.STATE)

    def test_have_no_caller_wait_for_a_launcher_that_was_killed_while_it_started(self) -> None:
        launcher = settings(UNITS / delegation.UNIT)
        assert launcher["Service"]["Restart"] == "on-abnormal"
        assert launcher["Unit"]["StartLimitIntervalSec"] == "0"

    def test_are_put_together_by_the_bus(self) -> None:
        activation = settings(DBUS / f"{delegation.NAME}.service")["D-BUS Service"]
        assert activation["Name"] == delegation.NAME
        assert (activation["SystemdService"], activation["User"]) == (delegation.UNIT, "root")
        policies = ElementTree.parse(DBUS / f"{delegation.NAME}.conf").getroot().findall("policy")
        assert [policy.attrib for policy in policies] == [{"user": "root"}, {"user": delegation.USER}]
        root, front = ([(rule.tag, rule.attrib) for rule in policy] for policy in policies)
        assert root == [("allow", {kind: delegation.NAME}) for kind in ("own", "send_destination")]
        assert front[0] == ("deny", {"send_type": "method_call"})
        assert ("allow", {"send_destination": delegation.NAME}) in front
        assert all("own" not in rule for _, rule in front)

    def test_have_no_capabilities_and_the_one_that_is_root_has_no_network(self) -> None:
        front, launcher = settings(UNITS / "llamaswapd.service"), settings(UNITS / delegation.UNIT)
        for each in (front, launcher):
            assert each["Service"]["CapabilityBoundingSet"] == ""
            assert each["Service"]["NoNewPrivileges"] == "yes"
        assert launcher["Service"]["PrivateNetwork"] == "yes"
        assert launcher["Service"]["RestrictAddressFamilies"] == "AF_UNIX"

    def test_do_not_share_credentials(self) -> None:
        """What is meant for models alone is among those of the launcher."""
        assert "Credential" not in (UNITS / "llamaswapd.service").read_text()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@asynccontextmanager
async def installed(
    manager: PrivateManager, tmp_path: Path, port: int
) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Have a real systemd run the user's units, for a small daemon on another port; yields what calls systemctl."""
    script = tmp_path / "daemon.py"
    script.write_text(DAEMON)
    environ = {**os.environ, **manager.environment}
    folder = manager.runtime_dir / "units"
    for each in (UNITS / "user").iterdir():
        text = each.read_text().replace(":8080\n", f":{port}\n")
        lines = []
        for line in text.splitlines():
            if line.startswith("ExecStart="):
                line = f"ExecStart={sys.executable} {script}\nEnvironment=PYTHONPATH={UNITS.parent}"
            if not line.startswith("StateDirectory="):  # it would be made in the home directory
                lines.append(line)
        (folder / each.name).write_text("\n".join(lines) + "\n")

    async def systemctl(*words: str) -> None:
        process = await asyncio.create_subprocess_exec("systemctl", "--user", *words, env=environ)
        assert await process.wait() == 0

    await systemctl("daemon-reload")
    try:
        yield systemctl
    finally:
        await systemctl("stop", "llamaswapd.socket", "llamaswapd.service")
        for each in (UNITS / "user").iterdir():
            (folder / each.name).unlink()
        await systemctl("daemon-reload")


async def ask(host: str, port: int) -> list[str]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"?\n")
    answer = await reader.readline()
    writer.close()
    return answer.decode().split()


@pytest.mark.private
async def test_systemd_passes_both_addresses_by_name_and_no_client_notices_restarts(
    private: PrivateManager, tmp_path: Path
) -> None:
    port = free_port()
    async with installed(private, tmp_path, port) as systemctl:
        await systemctl("start", "llamaswapd.socket")
        first = await ask("127.0.0.1", port)  # which starts the daemon
        assert first[:2] == [str(port), "http,http"]
        if (addresses := Path("/proc/net/if_inet6")).exists() and addresses.read_text():
            assert await ask("::1", port) == first
        is_over, pids = asyncio.Event(), {first[2]}

        async def go_on_asking() -> None:
            while not is_over.is_set():
                pids.add((await ask("127.0.0.1", port))[2])

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(go_on_asking())
            for _ in range(3):
                known = len(pids)
                await systemctl("restart", "llamaswapd.service")
                while len(pids) == known:  # noqa: ASYNC110, what is waited for has no event
                    await asyncio.sleep(0.01)
            is_over.set()
        assert len(pids) == 4
