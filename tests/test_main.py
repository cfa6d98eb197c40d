"""The command line keeps to the rules of Go's flag package."""

from __future__ import annotations

import pytest

from llamaswapd.__main__ import go_flags


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
