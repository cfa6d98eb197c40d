from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from llamaswapd.activity.activity import Activity
from llamaswapd.errors import NotFound, RequestError
from llamaswapd.http.activity import ActivityApi
from tests.activity.ended import USAGE, activity, finished


async def ask(it: Activity, target: str, **match_info: str) -> Any:
    """Return what the handler of a path answers."""
    api = ActivityApi(it)
    handlers = {
        "/api/metrics": api.all_rows,
        "/api/metrics/activity": api.page,
        "/api/metrics/stats": api.stats,
        "/api/captures/{id}": api.capture,
    }
    # aiohttp before 3.10 wants a loop that is current in its own way.
    request = make_mocked_request("GET", target, match_info=match_info, loop=asyncio.get_running_loop())
    answer = await handlers[target.partition("?")[0]](request)
    assert isinstance(answer.body, bytes)
    assert (answer.status, answer.content_type, answer.body[-1:]) == (200, "application/json", b"\n")
    return json.loads(answer.body)


async def test_rows_are_answered_in_three_spellings() -> None:
    async with activity() as it:
        assert await ask(it, "/api/metrics") == []
        for model in ("a/b", "c d", "c d"):
            it.add(finished(USAGE, model_id=model))
        page = await ask(it, "/api/metrics/activity?limit=2&model=c+d&model=a%2Fb&sort=id&order=asc")
        assert [row["model"] for row in page["data"]] == ["a/b", "c d"]
        assert (page["page"], page["limit"], page["total"], page["total_pages"]) == (1, 2, 3, 2)
        assert [row["id"] for row in await ask(it, "/api/metrics")] == [1, 2, 3]
        sums = await ask(it, "/api/metrics/stats?model=c%20d")
        assert sums == {
            "total_requests": 2,
            "total_input_tokens": 6,
            "total_output_tokens": 8,
            "total_cache_tokens": 0,
            "prompt_histogram": None,
            "gen_histogram": None,
        }
        assert (await ask(it, "/api/metrics/stats"))["total_requests"] == 3


@pytest.mark.parametrize("target", ["/api/metrics/activity?limit=x", "/api/metrics/activity?order=up"])
async def test_what_makes_no_sense_is_a_bad_request(target: str) -> None:
    async with activity() as it:
        with pytest.raises(RequestError):
            await ask(it, target)


async def test_odd_names_of_models_find_nothing() -> None:
    async with activity() as it:
        it.add(finished())
        for name in ("%FF", "%00", "%ED%A0%80", "'", "m%25"):
            assert (await ask(it, f"/api/metrics/activity?model={name}"))["total"] == 0
            assert (await ask(it, f"/api/metrics/stats?model={name}"))["total_requests"] == 0


async def test_a_capture_is_answered_by_its_number() -> None:
    async with activity() as it:
        it.add(finished(USAGE, request_headers=[("x-session-id", "s")]))
        capture = await ask(it, "/api/captures/{id}", id="1")
        assert capture == {
            "id": 1,
            "req_path": "/v1/chat/completions",
            "req_headers": {"X-Session-Id": "s"},
            "req_body": base64.b64encode(b'{"model":"m"}').decode(),
            "resp_headers": {},
            "resp_body": base64.b64encode(USAGE).decode(),
        }
        for text in ("x", "", "1.0", "1e3", "٣", "1" * 30):
            with pytest.raises(RequestError, match="invalid capture ID"):
                await ask(it, "/api/captures/{id}", id=text)
        for text in ("2", "0", "-1"):
            with pytest.raises(NotFound, match="capture not found"):
                await ask(it, "/api/captures/{id}", id=text)
