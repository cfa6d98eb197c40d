"""What the packages bring: a configuration that loads, completions that know every flag, and all files there are."""

from __future__ import annotations

import inspect
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from llamaswapd import __main__ as command_line
from llamaswapd.config.load import load

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "packaging"
SHIPPED = PACKAGING / "config.yaml"
COMPLETIONS = sorted((PACKAGING / "completions").iterdir())
# Nobody but systemd starts the launcher.
VERBS = {name: verb for name, verb in command_line.VERBS.items() if name != "launcher"}


def flags_of(verb: object) -> set[str]:
    return set(re.findall(r'add_argument\("-([a-z-]+)"', inspect.getsource(verb)))  # type: ignore[arg-type]


def complete_in_bash(*words: str) -> list[str]:
    script = (
        f'source {PACKAGING}/completions/llamaswapd; compopt() {{ :; }}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '_llamaswapd; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    argv = ["bash", "--norc", "-c", script, "bash", "llamaswapd", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()


def test_the_shipped_configuration_loads_as_it_is_and_has_no_models() -> None:
    loaded = load([SHIPPED], None)
    assert (dict(loaded.config.models), loaded.warnings) == ({}, ())


def test_its_examples_load_once_they_are_uncommented(tmp_path: Path) -> None:
    _, _, examples = SHIPPED.read_text().partition("\n#models:")
    file = tmp_path / "config.yaml"
    file.write_text(re.sub(r"^#(?! \S)", "", f"models:{examples}", flags=re.MULTILINE))
    loaded = load([file], None, {"API_KEY": "secret"})
    assert (list(loaded.config.models), loaded.warnings) == (["qwen"], ())
    assert loaded.config.models["qwen"].ttl == 600
    assert len(loaded.config.api_keys) == 1


def test_bash_completes_every_verb_and_flag() -> None:
    daemons = {option.option_strings[0] for option in command_line.flag_parser()._actions} - {"-h"} | {"-help"}
    assert set(complete_in_bash("-")) == daemons
    assert set(complete_in_bash("--")) == {f"-{flag}" for flag in daemons}
    assert set(complete_in_bash("")) == daemons | set(VERBS)
    for name, verb in VERBS.items():
        assert set(complete_in_bash(name, "-")) == {f"-{flag}" for flag in flags_of(verb)} | {"-help"}, name
    assert set(complete_in_bash("-manager", "")) == set(command_line.MANAGERS)


@pytest.mark.parametrize("file", COMPLETIONS, ids=lambda file: file.name)
def test_every_completion_knows_every_verb_flag_and_manager(file: Path) -> None:
    text = file.read_text()
    flags = flags_of(command_line.flag_parser) | {flag for verb in VERBS.values() for flag in flags_of(verb)}
    words = {*flags, *VERBS, *command_line.MANAGERS, "listen", "help"}
    assert sorted(word for word in words if not re.search(rf"(?<![\w-])-?{word}\b", text)) == []


def test_the_debian_package_has_every_file_that_is_there_to_be_installed() -> None:
    patterns = [line.split()[0] for line in (PACKAGING / "debian" / "llamaswapd.install").read_text().splitlines()]
    folders = ("completions", "dbus", "needrestart", "sysusers.d", "tmpfiles.d")
    files = [path for folder in folders for path in (PACKAGING / folder).iterdir()]
    files += [path for path in (ROOT / "units").rglob("*") if path.is_file()]
    names = [str(path.relative_to(ROOT)) for path in (*files, SHIPPED)]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_debians_changelog_begins_with_the_version_of_the_program() -> None:
    first = (PACKAGING / "debian" / "changelog").read_text().splitlines()[0]
    assert re.fullmatch(rf"llamaswapd \({re.escape(command_line.__version__)}-\d+\) unstable; urgency=medium", first)
