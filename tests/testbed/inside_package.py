"""The Debian package in an operator's hands, from the first look to the purge. Runs in a bed, as root, in this order.

What is on the command line: the package that is installed, and one of a higher version.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from inside_daemon import Client, eventually, log_of, main_pid, output, show, units

SERVER = "/usr/bin/python3 -S -E /opt/llamaswapd/tests/models/server.py"
PACKAGES = tuple(os.environ["PACKAGES"].split())
CONFIG = Path("/etc/llamaswapd/config.yaml")
SHIPPED = CONFIG.read_text() if CONFIG.exists() else ""
MODELS = f"""
models:
  one:
    cmd: {SERVER} ${{PORT}}
  other:
    cmd: {SERVER} ${{PORT}}
"""
UNIT = "llamaswapd-model-one.service"
NOW = Path("/run/stream-may-end")
OURS = ("/opt/", "/proc/", "/sys/", "/var/tmp/testbed-debs")  # this test's, and the kernel's

client = Client(8080)


def apt(*arguments: str) -> str:
    return output("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-o", "Dpkg::Use-Pty=0", *arguments)


def install(package: str) -> str:
    return apt("--no-install-recommends", "--allow-downgrades", "--reinstall", "install", package)


def models() -> list[str]:
    status, text = client.get("/v1/models")
    return [each["id"] for each in json.loads(text)["data"]] if status == 200 else []


def is_active(unit: str) -> bool:
    return show(unit, "ActiveState")["ActiveState"] == "active"


def mode(path: str) -> str:
    status = Path(path).stat()
    return f"{status.st_mode & 0o7777:04o} {pwd.getpwuid(status.st_uid).pw_name}"


def processes_of_it() -> list[str]:
    rows = output("ps", "-eo", "user:32=,args=").splitlines()
    return [row for row in rows if "llamaswapd" in row and "pytest" not in row and "/opt/" not in row.split()[-1]]


def stream(until: Path) -> tuple[int, str]:
    return client.ask("one", stream=True, until=str(until), gap=0.05)


def test_it_runs_as_it_was_installed() -> None:
    assert models() == []
    assert client.get("/v1/models")[0] == 200
    assert [is_active(f"llamaswapd.{kind}") for kind in ("service", "socket")] == [True, True]
    assert output("systemctl", "is-enabled", "llamaswapd.service", "llamaswapd.socket").split() == ["enabled"] * 2
    assert show("llamaswapd.service", "NRestarts") == {"NRestarts": "0"}  # the bus let it call the launcher at once
    assert output("systemctl", "list-units", "--failed", "--plain", "--no-legend", "llamaswapd*") == ""
    assert processes_of_it() != []
    listening = output("ss", "-Hltn", "sport", "=", ":8080").splitlines()
    assert {row.split()[3].rsplit(":", 1)[0] for row in listening} == {"127.0.0.1", "[::1]"}


def test_what_every_request_goes_through_is_compiled() -> None:
    assert "__mypyc" in Path(f"/proc/{main_pid('llamaswapd.service')}/maps").read_text()
    is_current = "from llamaswapd import compiled; print(compiled.state())"
    assert output("/usr/bin/python3", "-c", is_current).strip() == "compiled"


def test_a_session_gets_no_daemon_because_the_machine_has_one() -> None:
    done = subprocess.run(["systemctl", "--global", "is-enabled", "llamaswapd.service"], capture_output=True, text=True)
    assert done.stdout == "disabled\n"


def test_only_root_reads_the_configuration_and_the_credentials() -> None:
    assert mode("/etc/llamaswapd") == "0755 root"
    assert mode("/etc/llamaswapd/config.yaml") == "0640 root"
    assert mode("/etc/llamaswapd/models.d") == "0755 root"
    assert mode("/etc/llamaswapd/credentials") == "0700 root"


@pytest.mark.parametrize("scope", ["system", "user"])
def test_the_installed_units_are_what_systemd_accepts(scope: str) -> None:
    found = sorted(map(str, Path(f"/usr/lib/systemd/{scope}").glob("llamaswapd*")))
    assert found
    # The bed has no man to look for the pages with, nor a user who is logged in.
    verify = ["systemd-analyze", f"--{scope}", "--man=no", "verify", *found]
    done = subprocess.run(verify, env={**os.environ, "XDG_RUNTIME_DIR": "/tmp"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_needrestart_leaves_models_and_keepers_alone() -> None:
    script = (
        'our %nrconf; do "/etc/needrestart/conf.d/llamaswapd.conf" // die $@ || $!; '
        "for my $unit (@ARGV) { print grep({ $unit =~ $_ } keys %{$nrconf{override_rc}}) ? 0 : 1 }"
    )
    left_alone = (UNIT, "llamaswapd-second-model-one.service", "llamaswapd-keeper.service")
    restarted = ("llamaswapd.service", "llamaswapd-launcher.service", "keeper.service")
    assert output("perl", "-we", script, *left_alone, *restarted) == "000111"


def test_the_test_that_debian_would_run_passes() -> None:
    output("python3", "/opt/llamaswapd/packaging/debian/tests/smoke")


def test_an_edited_file_is_read_by_a_reload_and_its_models_are_in_the_journal() -> None:
    CONFIG.write_text(MODELS)
    output("systemctl", "reload", "llamaswapd")
    eventually(lambda: models() == ["one", "other"], "the models of the edited file are listed")
    status, text = client.ask("one", stream=True, n=3)
    assert (status, text.count("data: ")) == (200, 4)
    eventually(
        lambda: "received /v1/chat/completions" in log_of("-u", "llamaswapd-model-*"),
        "the journal has the model's line",
    )


@pytest.fixture
def asking() -> Iterator[list[int]]:
    """Have somebody ask again and again; yields what was answered."""
    answers: list[int] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.wait(0.02):
            answers.append(client.get("/v1/models")[0])

    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask)
        try:
            yield answers
        finally:
            is_over.set()
            asked.result()


def test_an_upgrade_cuts_no_stream_refuses_no_client_and_leaves_the_model_running(asking: list[int]) -> None:
    before, daemon = main_pid(UNIT), main_pid("llamaswapd.service")
    versions = {output("llamaswapd", "-version")}
    NOW.unlink(missing_ok=True)
    with ThreadPoolExecutor() as pool:
        streaming = pool.submit(stream, NOW)
        eventually(lambda: "one" in client.get("/running")[1], "the stream has begun")
        upgrading = pool.submit(install, PACKAGES[1])
        eventually(
            lambda: show("llamaswapd.service", "ActiveState")["ActiveState"] == "deactivating", "it is restarted"
        )
        known = len(asking)
        NOW.touch()
        status, text = streaming.result()
        upgrading.result()
    assert status == 200
    assert text.endswith("data: [DONE]\n\n")
    numbers = [int(number) for number in re.findall(r'"content":"(\d+) "', text)]
    assert numbers == list(range(len(numbers)))
    assert numbers
    eventually(lambda: len(asking) > known + 1, "somebody was answered after the upgrade")
    assert set(asking) == {200}
    assert main_pid("llamaswapd.service") != daemon
    versions.add(output("llamaswapd", "-version"))
    assert len(versions) == 2
    status, text = client.ask("one")
    assert (status, json.loads(text)["pid"], main_pid(UNIT)) == (200, before, before)


def test_the_operators_file_and_its_mode_survive_an_upgrade() -> None:
    assert CONFIG.read_text() == MODELS
    assert mode(str(CONFIG)) == "0640 root"


def test_an_upgrade_with_a_broken_file_succeeds_and_the_journal_says_what_is_wrong() -> None:
    before = main_pid(UNIT)
    CONFIG.write_text(MODELS + "nonsense: [\n")
    try:
        install(PACKAGES[1])
        wrong = f"config {CONFIG}: yaml: line"
        eventually(lambda: wrong in log_of("-u", "llamaswapd.service", "-n", "50"), "the journal says what is wrong")
    finally:
        CONFIG.write_text(MODELS)
    # The next start, of which there is one every moment, succeeds.
    status, text = client.ask("one")
    assert (status, json.loads(text)["pid"], main_pid(UNIT)) == (200, before, before)


def test_a_removal_stops_everything_and_leaves_the_configuration() -> None:
    assert units() == [UNIT]
    apt("remove", "llamaswapd")
    # What is enabled stays so until the purge, and is a unit that is not found.
    assert units("llamaswapd*", "--state=loaded") == []
    assert processes_of_it() == []
    assert not list(Path("/run").glob("llamaswapd*"))
    assert CONFIG.read_text() == MODELS


def test_what_was_removed_is_installed_again_with_its_configuration() -> None:
    install(PACKAGES[1])
    assert client.ask("other")[0] == 200
    assert mode(str(CONFIG)) == "0640 root"


def test_a_purge_leaves_nothing_not_even_of_a_daemon_that_crashed() -> None:
    assert client.ask("one")[0] == 200
    output("systemctl", "kill", "--signal=KILL", "llamaswapd.service")
    for folder in ("credentials", "models.d"):
        Path(f"/etc/llamaswapd/{folder}/ADDED").write_text("")
    apt("purge", "llamaswapd")
    found = output("find", "/", "/run", "/tmp", "/dev/shm", "-xdev", "-name", "*llamaswapd*").splitlines()
    assert [path for path in found if not path.startswith(OURS)] == []
    assert units("llamaswapd*") == []
    assert processes_of_it() == []
    slices = output("systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=slice")
    assert "llamaswapd" not in slices


def test_it_can_be_installed_where_no_systemd_runs_and_removed_there() -> None:
    def without_systemd(*argv: str) -> str:
        hide = 'mount -t tmpfs none /run/systemd && mount -t tmpfs none /run/dbus && exec "$@"'
        return output("unshare", "--mount", "sh", "-c", hide, "sh", "env", "DEBIAN_FRONTEND=noninteractive", *argv)

    without_systemd("dpkg", "-i", PACKAGES[0])
    assert units("llamaswapd*") == []
    assert mode(str(CONFIG)) == "0640 root"
    assert mode("/etc/llamaswapd/credentials") == "0700 root"
    without_systemd("dpkg", "--purge", "llamaswapd")
    assert not Path("/etc/llamaswapd").exists()


def test_it_runs_again_after_a_purge() -> None:
    install(PACKAGES[1])
    assert models() == []
    assert CONFIG.read_text() == SHIPPED
    assert mode(str(CONFIG)) == "0640 root"
