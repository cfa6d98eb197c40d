"""Every example in docs/ is what it says: configurations load, unit files, commands and data can be read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Example, examples, of_language

from llamaswapd.config.load import load
from llamaswapd.config.settings import SETTINGS

README = ROOT / "README.md"
UNITS = ROOT / "units"
OUR_UNITS = sorted(UNITS.glob("llamaswapd*"))

# What may stand behind a fence, and the test that looks at it.
LANGUAGES = {"yaml", "systemd", "sh", "json", "env", "modprobe", "nginx", "caddy"}


def each(language: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", of_language(language), ids=str)


@each("yaml")
def test_every_configuration_loads_without_a_warning(example: Example, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(example.text)
    # Every ${env.NAME} of the pages is a secret, and stands where one may stand.
    secrets = {name: f"secret-of-{name}" for name in re.findall(r"\$\{env\.(\w+)\}", example.text)}
    loaded = load([file], environ={}, credentials=secrets)
    assert not loaded.warnings
    assert loaded.config.models


@each("systemd")
def test_every_unit_and_drop_in_is_understood_by_systemd(example: Example, tmp_path: Path) -> None:
    verify = shutil.which("systemd-analyze") or pytest.skip("systemd is not installed")
    assert example.what.endswith((".service", ".socket")), "say which unit it is"
    if "[Unit]" in example.text:
        (tmp_path / example.what).write_text(without_programs(example.text))
        theirs = example.what
    else:
        assert example.what in {unit.name for unit in OUR_UNITS}, "say which of ours it is for"
        folder = tmp_path / f"{example.what}.d"
        folder.mkdir()
        (folder / "example.conf").write_text(example.text)
        theirs = "example.conf"
    for unit in OUR_UNITS:
        (tmp_path / unit.name).write_text(without_programs(unit.read_text()))
    argv = [verify, "--man=no", "--recursive-errors=no", "verify", tmp_path / example.what]
    env = {"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if theirs in line] == []


def without_programs(unit: str) -> str:
    """Return a unit with programs that there are: whether the others are installed is another matter."""
    return re.sub(r"^(Exec\w+=-?)\S+", r"\1/bin/true", unit, flags=re.MULTILINE)


@each("sh")
def test_every_command_can_be_read_by_a_shell(example: Example) -> None:
    subprocess.run(["bash", "-n"], input=example.text, text=True, check=True)


@each("json")
def test_every_piece_of_json_is_some(example: Example) -> None:
    json.loads(example.text)


@each("env")
def test_every_environment_has_names_and_values(example: Example) -> None:
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*=\S+", line) for line in example.text.splitlines())


@each("modprobe")
def test_every_module_option_has_a_name_and_a_value(example: Example) -> None:
    assert re.fullmatch(r"(options \w+( \w+=\S+)+\n)+", example.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_example_has_a_test(page: Path) -> None:
    assert {example.language for example in examples(page)} <= LANGUAGES
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"^\s*(models:|\[Service\]|\[Socket\])$", text, re.MULTILINE), "put it behind a fence"
    commands = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    subprocess.run(["bash", "-n"], input="\n".join(commands), text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_setting_of_a_unit_that_is_named_is_one(page: Path) -> None:
    """`MemoryMax=` in the text is a setting that models can have, or one of our own units."""
    own = {line.partition("=")[0] for unit in UNITS.glob("*.*") for line in unit.read_text().splitlines()}
    of_sockets = {"ListenStream", "SocketGroup", "SocketMode"}
    of_units = {"LoadCredential", "LoadCredentialEncrypted", "SetCredential", "ImportCredential", "Environment"}
    named = set(re.findall(r"`([A-Z][A-Za-z]+)=", page.read_text()))
    unknown = {name for name in named - own - of_sockets - of_units if name not in SETTINGS and not name.isupper()}
    assert not unknown


def test_the_readme_names_every_page() -> None:
    assert not [page.name for page in PAGES if f"(docs/{page.name})" not in README.read_text()]
