"""`/health`, plain for load balancers and verbose for operators."""

from __future__ import annotations

import pytest
from standins import Engine, House, house, model

from llamaswapd import __version__
from llamaswapd.condition import Condition
from llamaswapd.core.lifecycle import State


async def test_health_tells_how_many_models_do_what() -> None:
    engine = Engine(*(model(name) for name in "abcde"))
    for name, state in zip("abcd", (State.READY, State.READY, State.STARTING, State.STOPPING), strict=True):
        engine.become(name, state)
    engine.waiting = {"c": 2, "e": 3}
    async with house(engine, condition=Condition()) as it:
        answer = await it.ask("/health?verbose")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "status": "ok",
        "version": __version__,
        "models": {"ready": 2, "loading": 1, "stopping": 1, "stopped": 1},
        "queued": 5,
        "config": {"error": None},
        "systemd": {"error": None},
        "state": {"error": None},
    }


@pytest.mark.parametrize("trouble", ["config", "systemd", "state"])
async def test_trouble_is_told_with_its_text_and_does_not_make_the_daemon_dead(trouble: str) -> None:
    condition = Condition()
    field = {"config": "config_error", "systemd": "bus_error", "state": "state_error"}[trouble]
    setattr(condition, field, "it is so")
    async with house(Engine(), condition=condition) as it:
        answer = await it.ask("/health?verbose=1")
        assert await plain(it) == (200, b"OK")
    assert (answer.status, answer.json()["status"], answer.json()[trouble]) == (200, "degraded", {"error": "it is so"})


async def test_a_daemon_that_is_stopping_wants_no_more_traffic() -> None:
    condition = Condition(config_error="wrong")
    async with house(Engine(), condition=condition) as it:
        condition.is_draining = True
        answer = await it.ask("/health?x&verbose")
        assert (answer.status, answer.json()["status"]) == (503, "stopping")
        assert await plain(it) == (200, b"OK")


async def test_what_may_quote_the_configuration_takes_a_key_and_plain_health_none() -> None:
    async with house(Engine(api_keys=("k",))) as it:
        assert (await it.ask("/health?verbose")).status == 401
        assert (await it.ask("/health?verbose", "x-api-key: k")).json()["status"] == "ok"
        assert await plain(it) == (200, b"OK")


async def plain(it: House) -> tuple[int, bytes]:
    answers = [await it.ask(target) for target in ("/health", "/health?x=verbose", "/wol-health?verbose")]
    assert len({(answer.status, answer.body) for answer in answers}) == 1
    return answers[0].status, answers[0].body
