"""What was written comes back, and whatever else is in the file counts as nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llamaswapd.state import MAX_BYTES, Remembered, State, StateFile

RUN = "0123456789abcdef" * 2
SOME = State(
    models={"org/qwen": Remembered(RUN, 12.5, 80.25), "x": Remembered("f" * 32, 0.0, 0.0)},
    loads_s={"org/qwen": (2.5, 3.0), "never": ()},
    profile="evening",
)

seconds = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
ids = st.text(max_size=20)
runs = st.builds(Remembered, st.from_regex(r"\A[0-9a-f]{32}\Z"), seconds, seconds)
states = st.builds(
    State,
    st.dictionaries(ids, runs, max_size=4),
    st.dictionaries(ids, st.lists(seconds, max_size=4).map(tuple), max_size=4),
    st.none() | st.text(),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state.json")


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without room for a state."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    where = tmp_path / "full"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=16", "none", where], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode()}")
    yield where
    subprocess.run(["umount", where], check=True)


def content(**changes: Any) -> str:
    whole = {
        "version": 1,
        "models": {"a": {"invocation": RUN, "ready_at": 1, "last_used": 2.5}},
        "loads_s": {"a": [1, 2.5]},
        "profile": None,
    }
    return json.dumps(whole | changes)


def model(**changes: Any) -> str:
    return content(models={"a": {"invocation": RUN, "ready_at": 1, "last_used": 2.5, **changes}})


def test_what_was_written_is_read(file: StateFile) -> None:
    file.write(SOME)
    assert file.read() == SOME


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(states)
@example(State({"\ud800": Remembered(RUN, 1.7976931348623157e308, 0.0)}, {"": (0.1,)}, "\x00"))
def test_any_state_is_read_as_it_was_written(file: StateFile, state: State) -> None:
    file.write(state)
    assert file.read() == state


def test_no_file_is_nothing_and_not_worth_a_line(file: StateFile, caplog: pytest.LogCaptureFixture) -> None:
    assert file.read() == State()
    assert not caplog.records


def test_the_file_is_for_its_owner_only(file: StateFile) -> None:
    file.write(SOME)
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_nothing_else_is_left_in_the_folder(file: StateFile) -> None:
    file.write(SOME)
    file.write(State())
    assert os.listdir(file.path.parent) == ["state.json"]


def test_what_somebody_left_who_was_killed_while_writing_is_in_nobodys_way(file: StateFile) -> None:
    file.write(SOME)
    file.path.with_name("state.json.new").write_text("{half")
    assert file.read() == SOME
    file.write(State())
    assert file.read() == State()
    assert os.listdir(file.path.parent) == ["state.json"]


def test_a_removed_state_is_nothing(file: StateFile) -> None:
    file.write(SOME)
    file.remove()
    file.remove()
    assert file.read() == State()


def test_a_full_disk_leaves_the_state_before_and_nothing_else(full: Path) -> None:
    file = StateFile(full / "state.json")
    file.write(SOME)
    with pytest.raises(OSError, match="No space left"):
        file.write(State(loads_s={str(number): (1.5,) * 20 for number in range(100)}))
    assert file.read() == SOME
    assert os.listdir(full) == ["state.json"]


def test_a_folder_that_is_gone_is_an_error_to_the_writer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StateFile(tmp_path / "gone" / "state.json").write(SOME)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "\x00" * 100,
        "[" * 100_000,
        "9" * 10_000,
        content(version=2),
        content(version="1"),
        content(models=[]),
        content(models={"a": None}),
        content(loads_s={"a": 1}),
        content(loads_s={"a": ["1"]}),
        content(loads_s={"a": [True]}),
        content(profile=1),
        model(invocation=None),
        model(invocation=RUN.upper()),
        model(invocation=RUN + "\n"),
        model(ready_at=None),
        model(last_used=-1),
        model(last_used=float("nan")),
        model(last_used=float("inf")),
        model(last_used=10**400),
    ],
)
def test_rubbish_is_nothing_and_is_logged(file: StateFile, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file.path.write_text(text)
    assert file.read() == State()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(file.path) in caplog.text


def test_the_texts_that_rubbish_is_made_from_are_none(file: StateFile) -> None:
    file.path.write_text(model())
    assert file.read() == State({"a": Remembered(RUN, 1.0, 2.5)}, {"a": (1.0, 2.5)}, None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_state(file: StateFile, data: bytes) -> None:
    file.path.write_bytes(data)
    assert file.read() == State()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(st.sampled_from(["models", "loads_s", "profile", "more"]), json_values))
def test_any_values_are_a_state_that_can_be_written(file: StateFile, changes: dict[str, Any]) -> None:
    file.path.write_text(content(**changes))
    read = file.read()
    file.write(read)
    assert file.read() == read


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(states, st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_a_damaged_file_is_a_state(file: StateFile, state: State, where: int, damage: bytes) -> None:
    file.write(state)
    data = bytearray(file.path.read_bytes())
    start = where % len(data)
    data[start : start + len(damage)] = damage
    file.path.write_bytes(data)
    assert isinstance(file.read(), State)


def test_a_file_that_is_far_too_long_is_nothing(file: StateFile, caplog: pytest.LogCaptureFixture) -> None:
    file.path.touch()
    os.truncate(file.path, MAX_BYTES + 1)
    assert file.read() == State()
    assert "longer" in caplog.text


def test_a_folder_in_its_place_is_nothing(file: StateFile) -> None:
    file.path.mkdir()
    assert file.read() == State()


def test_a_pipe_in_its_place_is_nothing(file: StateFile) -> None:
    os.mkfifo(file.path)
    assert file.read() == State()
