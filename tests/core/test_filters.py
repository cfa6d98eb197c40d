from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswapd.config.schema import Filters, ModelConfig, Peer, PeerModel
from llamaswapd.core.filters import edit_for


def apply(body: bytes, target: ModelConfig | PeerModel, used: str, requested: str = "") -> bytes:
    return edit_for(target, used, requested or used).apply(body)


def needed(target: ModelConfig | PeerModel, used: str, requested: str = "") -> bool:
    return edit_for(target, used, requested or used).is_needed


BODY = b'{ "model": "fast", "temperature": 2, "messages": [] }'


def model(use_model_name: str = "", **filters: Any) -> ModelConfig:
    return ModelConfig(id="qwen", use_model_name=use_model_name, filters=Filters(**filters))


def test_without_filters_the_body_stays_the_same_object() -> None:
    assert apply(BODY, model(), "fast") is BODY
    assert not needed(model(), "fast")


def test_the_name_the_server_wants_replaces_the_name_the_client_used() -> None:
    assert apply(BODY, model("org/Qwen"), "fast") == BODY.replace(b'"fast"', b'"org/Qwen"')
    assert needed(model("org/Qwen"), "fast")


def test_a_client_that_uses_the_name_the_server_wants_is_passed_on_untouched() -> None:
    assert apply(BODY, model("fast"), "fast") is BODY
    assert not needed(model("fast"), "fast")


def test_stripped_members_are_gone_and_missing_ones_are_fine() -> None:
    edited = apply(BODY, model(strip_params=("top_p", "temperature")), "fast")
    assert edited == b'{ "model": "fast", "messages": [] }'


def test_set_comes_after_strip_and_by_id_after_set() -> None:
    filters: dict[str, Any] = {
        "strip_params": ("temperature",),
        "set_params": {"temperature": 1, "top_p": 1},
        "set_params_by_id": {"fast": {"top_p": 0.5}, "slow": {"top_p": 0.9}},
    }
    edited = apply(BODY, model(**filters), "fast")
    assert edited == b'{ "model": "fast", "messages": [],"temperature":1,"top_p":0.5 }'
    assert json.loads(apply(BODY, model(**filters), "qwen"))["top_p"] == 1


def test_members_are_set_in_sorted_order() -> None:
    edited = apply(b"{}", model(set_params={"b": 1, "a.y": 2, "a": {"x": 1}}), "qwen")
    assert edited == b'{"a":{"x":1,"y":2},"b":1}'


@pytest.mark.parametrize("path", ["model", "model.x", "\\model"])
def test_model_is_neither_stripped_nor_set(path: str) -> None:
    filters: dict[str, Any] = {
        "strip_params": (path,),
        "set_params": {path: "x"},
        "set_params_by_id": {"fast": {path: "y"}},
    }
    assert apply(BODY, model(**filters), "fast") is BODY
    assert apply(BODY, model("real", **filters), "fast") == BODY.replace(b"fast", b"real")


def test_a_nested_model_may_be_changed() -> None:
    assert apply(b'{"options":{"model":1}}', model(set_params={"options.model": 2}), "q") == b'{"options":{"model":2}}'


@given(
    st.sampled_from(["", "fast", "real"]),
    st.lists(st.sampled_from(["model", "temperature", "messages.0"])).map(tuple),
    st.dictionaries(st.sampled_from(["model", "temperature", "a.b"]), st.integers()),
    st.dictionaries(st.sampled_from(["fast", "other"]), st.dictionaries(st.sampled_from(["model", "c"]), st.none())),
)
def test_a_body_changes_only_where_it_was_said_to_be_needed(
    use: str, strip: tuple[str, ...], put: dict[str, int], by_id: dict[str, dict[str, None]]
) -> None:
    config = model(use, strip_params=strip, set_params=put, set_params_by_id=by_id)
    edited = apply(BODY, config, "fast")
    assert needed(config, "fast") or edited is BODY
    assert json.loads(edited)["model"] == (use or "fast")


def test_what_a_pin_or_selector_has_made_of_the_name_is_sent_and_decides_the_settings() -> None:
    target = model(set_params_by_id={"fast": {"top_k": 1}, "pinned": {"top_k": 2}})
    assert apply(BODY, target, "fast", "pinned") == (
        b'{ "model": "pinned", "temperature": 2, "messages": [],"top_k":2 }'
    )
    assert apply(BODY, model("org/Qwen"), "fast", "pinned") == BODY.replace(b'"fast"', b'"org/Qwen"')


def test_a_peer_gets_its_own_name_for_the_model_and_its_own_filters() -> None:
    peer = Peer(id="p", filters=Filters(strip_params=("temperature",), set_params={"top_p": 1}))
    target = PeerModel(peer, "org/Qwen")
    assert apply(BODY, target, "p/org/Qwen") == b'{ "model": "org/Qwen", "messages": [],"top_p":1 }'
    assert not needed(PeerModel(Peer(id="p"), "org/Qwen"), "org/Qwen")
