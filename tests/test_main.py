"""The command line keeps to the rules of Go's flag package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamaswapd.__main__ import go_flags, main


@pytest.mark.parametrize(
    ("written", "flags"),
    [
        ("-config f -listen :1", "-config f -listen :1"),
        ("--config=f -watch-config", "--config=f -watch-config"),
        ("-watch-config=true -version=1", "-watch-config -version"),
        ("-watch-config=false -config f", "-config f"),
        ("-config f ignored -listen :1", "-config f"),
        ("-config f -- -listen :1", "-config f"),
        ("-config -x -listen :1", "-config -x -listen :1"),
        ("-h", "-h"),
        ("-config", "-config"),
    ],
)
def test_flags_end_where_go_ends_them(written: str, flags: str) -> None:
    assert go_flags(written.split()) == flags.split()


def test_what_is_no_boolean_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        go_flags(["-watch-config=maybe"])
    assert caught.value.code == 2
    assert 'invalid boolean value "maybe" for -watch-config' in capsys.readouterr().err


def test_check_takes_unknown_keys_for_problems_only_if_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("globalTtl: 5\n")
    file = str(tmp_path / "c.yaml")
    assert main(["check", file]) == 0
    assert "usable: 0 models, 1 warning" in capsys.readouterr().out
    for flag in ("-strict", "--strict"):
        assert main(["check", flag, file]) == 1
        assert (
            "error: config " + file + ': globalTtl: unknown key; did you mean "globalTTL"?' in capsys.readouterr().out
        )


SECRET_FILE = """
apiKeys: ["${env.KEY}"]
models: {m: {cmd: serve, proxy: "http://h:1", env: ["T=<${env.KEY}>"]}}
"""


def test_a_file_that_uses_credentials_is_checked_with_their_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(SECRET_FILE)
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "KEY").write_text("s3cr3t\n")
    file = str(tmp_path / "c.yaml")
    assert main(["check", file]) == 1
    assert "environment variable 'KEY' is not set" in (told := capsys.readouterr().out)
    assert "llamaswapd check -credentials DIRECTORY" in told
    assert main(["check", "-credentials", str(tmp_path / "credentials"), file]) == 0
    assert capsys.readouterr().out == "usable: 1 model\n"
    assert main(["check", "-credentials", file, file]) == 1
    assert f"-credentials {file} is no directory" in capsys.readouterr().err


def test_units_are_printed_without_the_values_of_credentials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text(SECRET_FILE)
    (tmp_path / "KEY").write_text("s3cr3t\n")
    arguments = ["units", "-manager", "private", "-config", str(tmp_path / "c.yaml")]
    assert main([*arguments, "-credentials", str(tmp_path)]) == 0
    assert "T=<***>" in (told := capsys.readouterr().out)
    assert "s3cr3t" not in told
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert main(arguments) == 0
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("-config f", "-config cannot be used with -manager launcher, as the launcher reads the files"),
        ("-config-dir d", "-config-dir cannot be used with -manager launcher"),
        ("-watch-config", "systemctl edit llamaswapd-launcher.service"),
        ("-instance other", "-instance cannot be used with -manager launcher"),
    ],
)
def test_what_is_the_launchers_is_refused_with_it(
    flags: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-manager", "launcher", *flags.split()]) == 1
    assert complaint in capsys.readouterr().err


def test_the_launcher_wants_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launcher"]) == 1
    assert "at least one of -config or -config-dir must be provided" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_ends_a_verb_without_a_word() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run(
        [sys.executable, "-m", "llamaswapd", "schema"], stdout=theirs, stderr=subprocess.PIPE, timeout=60
    )
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_what_a_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    (file := tmp_path / "a.yaml").write_text("odd😀: 1\n", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "llamaswapd", "check", file],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=60,
    )
    assert ended.stderr == b""
    assert rb"odd\U0001f600" in ended.stdout


def test_the_schema_is_json_on_every_terminal() -> None:
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    said = subprocess.check_output([sys.executable, "-m", "llamaswapd", "schema"], env=environ, timeout=60)
    assert "models" in json.loads(said)["properties"]
