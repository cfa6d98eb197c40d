from __future__ import annotations

import pytest

from llamaswapd.config.schema import Config, ModelConfig, Peer, PeerModel, Profile, Selector
from llamaswapd.core.lifecycle import State
from llamaswapd.core.naming import Naming, Resolved
from llamaswapd.errors import NoModel, ProfileNotFound, UnknownModel

CONFIG = Config(
    models={
        "qwen": ModelConfig(id="qwen", aliases=("gpt-4",)),
        "gemma": ModelConfig(id="gemma"),
        "hidden": ModelConfig(id="hidden", unlisted=True),
    },
    peers={"far": Peer(id="far", models=("llama",))},
    selectors={
        "any": Selector(strategy="pin", targets=("gpt-4", "gemma")),
        "spill": Selector(strategy="spillover", targets=("gemma", "far/llama")),
    },
    profiles={
        "coding": Profile(
            pins={"llm": "gpt-4", "gemma": "qwen", "auto": "any", "image": "", "any": "gemma", "remote": "llama"}
        ),
        "other": Profile(pins={"llm": "gemma"}),
    },
)


def stopped(model: str) -> State:
    return State.STOPPED


def resolve(name: str, profile: str | None = None) -> Resolved:
    naming = Naming(CONFIG)
    naming.activate(profile)
    return naming.resolve(name, stopped)


def outcome(resolved: Resolved) -> tuple[str, str, bool, str | None]:
    return resolved.target.id, resolved.name, resolved.is_rewritten, resolved.selector


@pytest.mark.parametrize(
    ("name", "profile", "expected"),
    [
        ("qwen", None, ("qwen", "qwen", False, None)),
        ("gpt-4", None, ("qwen", "gpt-4", False, None)),
        ("llama", None, ("far/llama", "llama", False, None)),
        ("far/llama", None, ("far/llama", "far/llama", False, None)),
        ("any", None, ("qwen", "gpt-4", True, "any")),
        ("llm", "coding", ("qwen", "gpt-4", True, None)),
        ("llm", "other", ("gemma", "gemma", True, None)),
        ("qwen", "coding", ("qwen", "qwen", False, None)),
        ("remote", "coding", ("far/llama", "llama", True, None)),
    ],
)
def test_a_name_means_what_pins_selectors_models_and_peers_make_of_it_in_this_order(
    name: str, profile: str | None, expected: tuple[str, str, bool, str | None]
) -> None:
    assert outcome(resolve(name, profile)) == expected


def test_a_pin_hides_a_model_and_a_selector_of_its_name() -> None:
    assert outcome(resolve("gemma", "coding")) == ("qwen", "qwen", True, None)
    assert outcome(resolve("any", "coding")) == ("gemma", "gemma", True, None)


def test_a_pin_may_lead_to_a_selector_whose_choice_is_not_pinned_again() -> None:
    assert outcome(resolve("auto", "coding")) == ("qwen", "gpt-4", True, "any")
    assert outcome(resolve("spill", "coding")) == ("gemma", "gemma", True, "spill")


def test_a_pin_to_nothing_disables_the_name() -> None:
    with pytest.raises(NoModel, match="no model id could be identified") as error:
        resolve("image", "coding")
    assert error.value.status == 404


def test_a_pin_compares_case_and_all() -> None:
    with pytest.raises(UnknownModel):
        resolve("LLM", "coding")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("qwem", "qwen"), ("gpt-5", "gpt-4"), ("spil", "spill"), ("far/lama", "far/llama"), ("hiden", None)],
)
def test_an_unknown_name_is_refused_with_the_nearest_that_is_listed(name: str, nearest: str | None) -> None:
    with pytest.raises(UnknownModel) as error:
        resolve(name)
    hint = f', did you mean "{nearest}"?' if nearest else ""
    assert str(error.value) == f'no router for requested model: "{name}" is not configured{hint}'


def test_what_a_pin_leads_to_is_named_when_it_is_unknown() -> None:
    naming = Naming(Config(profiles={"p": Profile(pins={"a": "b"})}))
    naming.activate("p")
    with pytest.raises(UnknownModel, match='"b" is not configured'):
        naming.resolve("a", stopped)


def test_no_profile_is_active_at_first_and_any_can_be_left() -> None:
    naming = Naming(CONFIG)
    assert (naming.active, naming.pins()) == (None, {})
    naming.activate("other")
    assert (naming.active, naming.pins()) == ("other", {"llm": "gemma"})
    naming.activate("")
    assert (naming.active, naming.pins()) == (None, {})


def test_a_profile_that_does_not_exist_leaves_the_active_one() -> None:
    naming = Naming(CONFIG)
    naming.activate("other")
    with pytest.raises(ProfileNotFound) as error:
        naming.activate("x")
    assert (str(error.value), error.value.status) == ('profile "x" not found', 404)
    assert naming.active == "other"


def test_a_selector_counts_a_request_until_it_is_released() -> None:
    naming = Naming(CONFIG)
    first = naming.resolve("spill", stopped)
    assert isinstance(first.target, ModelConfig)
    second = naming.resolve("spill", stopped)
    assert second.target == PeerModel(CONFIG.peers["far"], "llama")
    first.release()
    first.release()
    assert naming.resolve("spill", stopped).name == "gemma"


def test_a_name_that_went_through_no_selector_can_be_released_too() -> None:
    resolve("qwen").release()
