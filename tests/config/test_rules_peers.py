"""Peers and profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llamaswapd.config.schema import PeerModel, PeerTimeouts

if TYPE_CHECKING:
    from conftest import Complain, Load


@pytest.mark.parametrize(
    ("peer", "path", "expected"),
    [
        ("{models: [x]}", "proxy", "proxy is required"),
        ("{proxy: '', models: [x]}", "proxy", "proxy is required"),
        ("{proxy: host, models: [x]}", "proxy", "invalid peer proxy URL (host): "),
        ("{proxy: 'http://h:port', models: [x]}", "proxy", "invalid peer proxy URL (http://h:port): "),
        ("{proxy: http://h}", "models", "peer models can not be empty"),
        ("{proxy: http://h, models: []}", "models", "peer models can not be empty"),
    ],
)
def test_a_peer_that_is_refused(complaints: Complain, peer: str, path: str, expected: str) -> None:
    (found,) = complaints(f"peers: {{p: {peer}}}")
    assert found.startswith(f"a.yaml: peers.p.{path}: {expected}")


def test_the_key_of_a_peer_is_in_no_message(complaints: Complain) -> None:
    assert "hush" not in complaints("peers: {p: {apiKey: hush}}")[0]


def test_a_peer_is_filled_in(load_text: Load) -> None:
    source = """
        peers:
          remote:
            proxy: https://h/api
            apiKey: ${env.KEY}
            models: [x, org/y, x]
            filters: {stripParams: "model, t", setParams: {model: no, b: 1, a: 2}}
            timeouts: {connect: 5, idleConn: -1}
    """
    config = load_text(source, environ={"KEY": "k"}).config
    peer = config.peers["remote"]
    assert (peer.id, peer.api_key, peer.models) == ("remote", "k", ("x", "org/y", "x"))
    assert peer.filters.strip_params == ("t",)
    assert list(peer.filters.set_params) == ["a", "b"]
    assert peer.timeouts == PeerTimeouts(connect=5, idle_conn=0)
    assert peer.timeouts.response_header == 60
    assert [each.id for each in config.peer_models] == ["remote/org/y", "remote/x"]
    assert config.find("x") == config.find("remote/x") == PeerModel(peer, "x")


def test_a_peer_of_which_nothing_is_said_serves_nothing(load_text: Load) -> None:
    loaded = load_text("peers: {p: }")
    assert loaded.config.peers == {}
    assert [warning.path for warning in loaded.warnings] == ["peers.p"]


PEERS = """
peers:
  p: {proxy: http://h, models: [x/y]}
models:
  m: {proxy: http://h}
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "peers: {p: {proxy: http://h, models: [x/y]}, p/x: {proxy: http://h, models: [y]}}",
            'peer model name "p/x/y" is ambiguous between peers.p model "x/y" and peers.p/x model "y"',
        ),
        (
            PEERS + "  p/x/y: {proxy: http://h}",
            'models.p/x/y: model ID "p/x/y" conflicts with fully qualified peer model name',
        ),
        (
            PEERS + "  n: {proxy: http://h, aliases: [p/x/y]}",
            'model n alias "p/x/y" conflicts with fully qualified peer model name',
        ),
        (
            PEERS + "  n: {proxy: http://h, filters: {setParamsByID: {p/x/y: {}}}}",
            'alias "p/x/y" conflicts with fully qualified peer model name',
        ),
        (
            PEERS + "selectors: {p/x/y: {strategy: pin, targets: [m]}}",
            'selector ID "p/x/y" conflicts with fully qualified peer model name',
        ),
        (
            PEERS + "profiles: {c: {pins: {p/x/y: m}}}",
            'profile c pin "p/x/y" conflicts with fully qualified peer model name',
        ),
    ],
)
def test_the_full_name_of_a_peers_model_is_reserved(complaints: Complain, body: str, expected: str) -> None:
    (found,) = complaints(body)
    assert expected in found


def test_bare_names_may_be_shared_and_hidden(load_text: Load) -> None:
    source = """
        peers:
          p: {proxy: http://h, models: [x, m]}
          q: {proxy: http://h, models: [x]}
        models: {m: {proxy: http://h}}
    """
    config = load_text(source).config
    assert config.find("x") is None
    assert config.find("m") is config.models["m"]


# ---- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        ("{' ': {pins: {a: m}}}", "profiles: profile names cannot be empty"),
        ("{c: {}}", "profiles.c.pins must contain at least one entry"),
        ("{c: }", "profiles.c.pins must contain at least one entry"),
        ("{c: {pins: {}}}", "profiles.c.pins must contain at least one entry"),
        ("{c: {pins: {'': m}}}", "profiles.c.pins: pin names cannot be empty"),
        ("{c: {pins: {a: nobody}}}", 'profiles.c.pins.a references unknown model "nobody"'),
        ("{c: {pins: {a: m, b: a}}}", 'profiles.c.pins.b references unknown model "a"'),
        (
            "{c: [m]}",
            "profile must be a mapping with description and pins; the legacy list syntax is no longer supported",
        ),
        ("{c: m}", "profile must be a mapping with description and pins"),
    ],
)
def test_a_profile_that_is_refused(complaints: Complain, profiles: str, expected: str) -> None:
    (found,) = complaints(f"{PEERS}profiles: {profiles}")
    assert expected in found


def test_pins_lead_to_anything_that_can_be_called(load_text: Load) -> None:
    source = f"""{PEERS}  n: {{proxy: http://h, aliases: [alias], filters: {{setParamsByID: {{variant: {{}}}}}}}}
selectors: {{s: {{strategy: pin, targets: [m]}}}}
profiles: {{c: {{pins: {{a: m, b: alias, c: variant, d: x/y, e: p/x/y, f: s, m: n, g: ~, h: ''}}}}}}
"""
    loaded = load_text(source)
    assert not loaded.warnings
    pins = loaded.config.profiles["c"].pins
    assert (pins["g"], pins["h"], pins["m"], pins["f"]) == ("", "", "n", "s")
