"""The package for Fedora, and examples of docs/ that take an installed program. Runs in a bed, as root, in this order.

What is in $PACKAGES: the package that is installed, and one of a higher version.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from inside_daemon import Client, eventually, log_of, main_pid, output, show, units
from pages import ROOT, examples, the

PACKAGES = tuple(os.environ["PACKAGES"].split())
CONFIG = Path("/etc/llamaswapd/config.yaml")
CREDENTIALS = Path("/etc/llamaswapd/credentials")
DROP_INS = Path("/etc/systemd/system")
SITE_PACKAGES = next(Path("/usr/lib").glob("python3.[0-9]*"))

# Fedora's own, as far as our scriptlets use it.
HELPER = """#!/bin/sh
verb=$1; shift
case $verb in
  install-system-units) systemctl preset "$@" ;;
  remove-system-units) systemctl disable --now "$@" ;;
  mark-restart-system-units) for unit; do systemctl set-property "$unit" Markers=+needs-restart; done ;;
esac
"""

# What the pages call llama-server: it tells what it was given, and answers.
LLAMA_SERVER = f"""#!/usr/bin/python3 -SE
import os, sys
words = dict(zip(sys.argv, sys.argv[1:]))
if "--model" in words:
    try:
        print("model:", open(words["--model"]).read())
    except OSError as error:
        print("model:", error)
if "HF_HOME" in os.environ:
    print("written:", open(os.environ["HF_HOME"] + "/x", "w").write("x"))
if "CREDENTIALS_DIRECTORY" in os.environ:
    print("credential:", open(words["--ssl-key-file"]).read())
print("user:", os.getuid(), "token:", os.environ.get("HF_TOKEN"), flush=True)
os.execv(sys.executable, [sys.executable, "-S", "-E", "{ROOT}/tests/models/server.py", words["--port"]])
"""

RELOADED = "configuration reloaded"

client = Client(8080)


def yaml_of(page: str) -> list[str]:
    return [example.text for example in examples(ROOT / "docs" / f"{page}.md") if example.language == "yaml"]


def configure(text: str) -> None:
    """Go on with this configuration, as the pages say: by a reload, which takes new credentials, too."""
    CONFIG.write_text(text)
    before = log_of("-u", "llamaswapd").count(RELOADED)
    output("systemctl", "reload", "llamaswapd")
    eventually(lambda: log_of("-u", "llamaswapd").count(RELOADED) > before, RELOADED)


def drop_in(unit: str, text: str) -> None:
    folder = DROP_INS / f"{unit}.d"
    folder.mkdir(exist_ok=True)
    (folder / "example.conf").write_text(text)


def asked(model: str, *words: str, url: str = "http://127.0.0.1:8080") -> str:
    """Ask a model by curl; return the status."""
    body = f'{{"model": "{model}"}}'
    json = ("-H", "Content-Type: application/json", "-d", body)
    return output("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *words, *json, f"{url}/v1/chat/completions")


def said(model: str, text: str) -> None:
    eventually(lambda: text in log_of("-t", model), f"{model} says: {text}")


def is_active(unit: str) -> bool:
    return show(unit, "ActiveState")["ActiveState"] == "active"


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> None:
    """Have what Fedora would have, and what the pages speak of."""
    helper = Path("/usr/lib/systemd/systemd-update-helper")
    helper.write_text(HELPER)
    helper.chmod(0o755)
    Path("/usr/lib/python3/dist-packages/fedora.pth").write_text(f"{SITE_PACKAGES}/site-packages\n")
    output("useradd", "--create-home", "alice")
    home = Path("/home/alice")
    for folder in (home / "models", home / "llama.cpp", home / ".cache/huggingface", Path("/srv/models")):
        folder.mkdir(parents=True)
    (home / "models/qwen3-8b.gguf").write_text("weights")
    for path in (Path("/usr/bin/llama-server"), home / "llama.cpp/llama-server"):
        path.write_text(LLAMA_SERVER)
        path.chmod(0o755)
    output("chown", "-R", "alice:", str(home))
    home.chmod(0o700)


def test_it_is_installed_with_its_users_and_started() -> None:
    output("rpm", "--install", "--nodeps", PACKAGES[0])
    assert pwd.getpwnam("llamaswapd").pw_shell.endswith("nologin")
    assert grp.getgrnam("llamaswapd-model")
    modes = {path: Path(path).stat().st_mode & 0o7777 for path in (str(CONFIG), str(CREDENTIALS))}
    assert modes == {str(CONFIG): 0o640, str(CREDENTIALS): 0o700}
    verify = ["systemd-analyze", "--man=no", "verify", *map(str, Path("/usr/lib/systemd/system").glob("llamaswapd*"))]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.1" in output("llamaswapd", "-version")
    output("systemctl", "start", "llamaswapd")
    assert client.get("/v1/models")[0] == 200


def test_credentials_are_what_the_page_on_secrets_says() -> None:
    for name, text in (("API_KEY", "sk-first"), ("OPENROUTER_KEY", "sk-or"), ("HF_TOKEN", "hf-first")):
        (CREDENTIALS / name).write_text(text + "\n")
    configure(yaml_of("secrets")[0])
    assert [asked("qwen"), asked("qwen", "-H", "x-api-key: sk-first")] == ["401", "200"]
    said("qwen", "token: hf-first")
    assert "hf-first" not in output("systemctl", "show", "llamaswapd-model-qwen.service")
    (CREDENTIALS / "HF_TOKEN").write_text("hf-second\n")
    output("systemctl", "reload", "llamaswapd")
    eventually(
        lambda: asked("qwen", "-H", "x-api-key: sk-first") == "200" and "token: hf-second" in log_of("-t", "qwen"),
        "the model has the other token",
    )


def test_encrypted_credentials_reach_the_half_that_they_are_for() -> None:
    for name, text in (("API_KEY", "sk-encrypted"), ("HF_TOKEN", "hf-encrypted")):
        (CREDENTIALS / name).unlink()
        encrypt = f"printf %s {text} | systemd-creds encrypt --name={name} - /etc/llamaswapd/{name}.cred"
        output("sh", "-c", encrypt)
    for unit in ("llamaswapd.service", "llamaswapd-launcher.service"):
        drop_in(unit, the("secrets", "systemd", unit))
    output("systemctl", "daemon-reload")
    output("systemctl", "restart", "llamaswapd-launcher", "llamaswapd")
    assert asked("qwen", "-H", "x-api-key: sk-encrypted") == "200"
    said("qwen", "token: hf-encrypted")
    for unit in ("llamaswapd.service", "llamaswapd-launcher.service"):
        shutil.rmtree(DROP_INS / f"{unit}.d")
    output("systemctl", "daemon-reload")


def test_a_model_has_a_credential_of_its_own() -> None:
    Path("/etc/llamaswapd/qwen.key").write_text("the key of qwen")
    configure(yaml_of("secrets")[1])
    assert asked("qwen") == "200"
    said("qwen", "credential: the key of qwen")


def test_models_in_a_home_are_read_in_either_way_of_the_page() -> None:
    bound, as_alice = yaml_of("from-llama-swap")[:2]
    configure(bound)
    assert asked("qwen") == "200"
    said("qwen", "model: weights")
    configure(as_alice)
    assert asked("qwen") == "200"
    said("qwen", f"user: {pwd.getpwnam('alice').pw_uid}")
    said("qwen", "written: 1")


def test_models_of_the_group_can_be_read_by_models_alone() -> None:
    Path("/srv/models/qwen3-8b.gguf").write_text("shared weights")
    for command in (("chgrp", "-R", "llamaswapd-model"), ("chmod", "-R", "u=rwX,g=rX,o=")):
        output(*command, "/srv/models")
    configure("models: {qwen: {cmd: 'llama-server --port ${PORT} --model /srv/models/qwen3-8b.gguf'}}")
    assert asked("qwen") == "200"
    said("qwen", "model: shared weights")
    assert subprocess.run(["runuser", "-u", "alice", "--", "cat", "/srv/models/qwen3-8b.gguf"]).returncode != 0


def test_nginx_alone_reaches_it_by_the_unix_socket_of_the_page() -> None:
    subject = ["-subj", "/CN=models.example.org", "-keyout", "/etc/ssl/private/models.example.org.key"]
    certificate = ["-x509", "-nodes", "-newkey", "rsa:2048", "-out", "/etc/ssl/models.example.org.pem"]
    output("openssl", "req", *certificate, *subject)
    upstream = the("behind-nginx", "nginx", "upstream")
    whole = the("behind-nginx", "nginx")
    config = upstream + whole[whole.index("map ") :]
    Path("/etc/nginx/conf.d/llamaswapd.conf").write_text(config)
    drop_in("llamaswapd.socket", the("behind-nginx", "systemd", "llamaswapd.socket"))
    output("systemctl", "daemon-reload")
    for verb in ("stop", "start"):
        output("systemctl", verb, "llamaswapd.socket", "llamaswapd.service")
    output("systemctl", "restart", "nginx")
    by_name = ("-k", "--resolve", "models.example.org:443:127.0.0.1")
    assert asked("qwen", *by_name, url="https://models.example.org") == "200"
    by_itself = [
        "runuser",
        "-u",
        "alice",
        "--",
        "curl",
        "-sS",
        "--unix-socket",
        "/run/llamaswapd.sock",
        "http://x/health",
    ]
    assert subprocess.run(by_itself).returncode != 0
    output("systemctl", "stop", "nginx", "llamaswapd.socket", "llamaswapd.service")
    shutil.rmtree(DROP_INS / "llamaswapd.socket.d")
    output("systemctl", "daemon-reload")
    output("systemctl", "start", "llamaswapd.socket", "llamaswapd.service")


def test_models_are_unloaded_before_sleep_by_the_unit_of_the_page() -> None:
    name = "llamaswapd-before-sleep.service"
    (DROP_INS / name).write_text(the("nvidia", "systemd", name))
    output("systemctl", "daemon-reload")
    assert asked("qwen") == "200"
    assert is_active("llamaswapd-model-qwen.service")
    output("systemctl", "start", name)
    assert units("llamaswapd-model-*") == []
    (DROP_INS / name).unlink()


def test_an_upgrade_cuts_no_stream_and_leaves_the_model_running() -> None:
    end = Path("/run/stream-may-end")
    client.load("qwen")
    before, daemon = main_pid("llamaswapd-model-qwen.service"), main_pid("llamaswapd.service")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.ask, "qwen", stream=True, until=str(end), gap=0.05)
        eventually(lambda: '"in_flight": 1' in client.get("/running")[1].replace('":1', '": 1'), "somebody streams")
        output("rpm", "--upgrade", "--nodeps", PACKAGES[1])
        # What Fedora's systemd does when the transaction is over.
        output("systemctl", "daemon-reload")
        restart = pool.submit(output, "systemctl", "reload-or-restart", "--marked")
        end.touch()
        status, text = answer.result()
        restart.result()
    assert (status, text.rstrip().endswith("data: [DONE]")) == (200, True)
    assert main_pid("llamaswapd-model-qwen.service") == before
    assert main_pid("llamaswapd.service") != daemon
    assert client.ask("qwen")[0] == 200


def test_nothing_runs_and_no_secret_stays_in_memory_when_it_is_erased() -> None:
    output("rpm", "--erase", "--nodeps", "llamaswapd")
    assert units("llamaswapd*") == []
    assert [str(path) for path in Path("/run").glob("llamaswapd*")] == []
    assert not list(SITE_PACKAGES.glob("site-packages/llamaswapd*"))
    assert "llama" not in output("ps", "-eo", "args=").replace("/opt/llamaswapd", "")
