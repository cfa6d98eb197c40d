"""The whole examination, and the verb."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import Folder

from llamaswapd.__main__ import main
from llamaswapd.doctor import machine_checks, model_checks
from llamaswapd.doctor.examine import bounded, examine
from llamaswapd.doctor.finding import Finding, ok, problem, summary, unseen, warning
from llamaswapd.doctor.machine import Machine, Unseen
from llamaswapd.errors import UsageError


def test_a_finding_is_a_line_with_its_remedy() -> None:
    assert str(problem("x", "is broken", "mend x")) == "problem  x: is broken; mend x"
    assert str(ok("x", "is whole")) == "ok       x: is whole"


def test_the_last_line_counts() -> None:
    found = [ok("a", "b"), problem("a", "b", "c"), problem("a", "b", "c"), warning("a", "b", "c"), unseen("a", "b")]
    assert summary(found) == "2 problems, 1 warning, 1 thing unseen"
    assert summary([ok("a", "b")]) == "all is well"


def test_a_check_that_is_stuck_is_left_behind(folder: Folder) -> None:
    for_ever = threading.Event()

    def check() -> Iterator[Finding]:
        yield ok("first", "is fine")
        for_ever.wait()

    found = list(bounded(folder.machine, "qwen: files", check, limit_s=0.05))
    for_ever.set()
    assert [(each.level, each.thing) for each in found] == [("ok", "first"), ("unseen", "qwen: files")]


def test_a_check_that_may_not_look_says_who_may(folder: Folder) -> None:
    def check() -> Iterator[Finding]:
        raise Unseen("/root/x")
        yield

    [found] = bounded(folder.machine, "qwen: files", check)
    assert str(found) == ("unseen   qwen: files: /root/x cannot be looked at by alice; run llamaswapd doctor as root")


def test_a_check_that_fails_itself_says_so(folder: Folder) -> None:
    def check() -> Iterator[Finding]:
        yield ok("first", "is fine")
        raise FileNotFoundError(2, "gone")

    assert [each.level for each in bounded(folder.machine, "qwen: files", check)] == ["ok", "unseen"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(
        "models:\n  one: {cmd: '/nowhere/server --port ${PORT}'}\n"
        "  two: {cmd: 'nosuchprogram ${PORT}', aliases: [other]}\n"
    )
    return file


def test_every_model_is_looked_at_or_those_that_are_named(folder: Folder, config: Path) -> None:
    found = list(examine(folder.machine, "private", [config], None))
    assert str(found[0]) == f"ok       {config}: is usable, with 2 models"
    assert {each.thing for each in found if each.level == "problem"} >= {
        "one: program /nowhere/server", "two: program nosuchprogram",
    }  # fmt: skip
    named = list(examine(folder.machine, "private", [config], None, ["other"]))
    assert not [each for each in named if each.thing.startswith("one:")]
    with pytest.raises(UsageError, match='no model "three" in the configuration; it has: one, two'):
        list(examine(folder.machine, "private", [config], None, ["three"]))


def test_a_configuration_that_is_wrong_is_a_problem_and_the_machine_is_looked_at_all_the_same(
    folder: Folder, config: Path
) -> None:
    config.write_text("models: 5\n")
    found = list(examine(folder.machine, "private", [config], None))
    assert (found[0].level, found[0].thing) == ("problem", "configuration")
    assert len(found) > 1


def test_secrets_of_the_launchers_are_known_and_not_shown(folder: Folder, config: Path) -> None:
    config.write_text("apiKeys: ['${env.KEY}']\nmodels:\n  one: {cmd: '/x ${PORT}', env: ['KEY=${env.OTHER}']}\n")
    folder.put("/etc/llamaswapd/credentials/OTHER", "s3cret")
    found = list(examine(folder.machine, "launcher", [config], None))
    assert found[0].level == "ok", str(found[0])
    assert "s3cret" not in "".join(map(str, found))


def test_a_manager_that_cannot_be_reached_is_a_problem_like_others(
    folder: Folder, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    found = list(examine(folder.machine, "user", [config], None))
    [about] = [each for each in found if each.thing == "manager"]
    assert about.level == "problem"
    assert about.value.startswith("user: ")
    assert [each for each in found if each.thing == "one: program /nowhere/server"]


def test_every_check_is_in_a_list() -> None:
    for module, checks in ((machine_checks, machine_checks.CHECKS), (model_checks, model_checks.CHECKS)):
        written = {
            name for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
        }  # fmt: skip
        assert written == {check.__name__ for check in checks}


def test_this_machine_can_be_examined_whatever_it_is(config: Path) -> None:
    assert list(examine(Machine(), "launcher", [config], None))


def test_the_verb_prints_lines_or_json_and_fails_if_there_is_a_problem(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["doctor", "-manager", "private", "-config", str(config)]
    assert main(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("problem  one: program /nowhere/server: /nowhere does not exist") for line in lines)
    assert "problem" in lines[-1]
    assert main([*argv, "-json", "two"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {"level", "thing", "value", "remedy"} == set(found[0])
