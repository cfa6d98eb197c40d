"""What Prometheus and the access log are told of the traffic."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from traffic import BEARER, WAIT_S, Rows, Service

openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.engine, pytest.mark.private]

QUESTION = [{"role": "user", "content": "What does a slice do?"}]
NEVER = "/nonexistent"  # a file that a model waits for


def test_the_metrics_count_what_clients_have_seen(service: Service, client: Any) -> None:
    before = counted(service, "red")
    plain = client.chat.completions.create(model="red", messages=QUESTION, max_tokens=8)
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = client.completions.create(model="red", prompt="every", max_tokens=4, **stream)
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model="red", input="the world")
    after = counted(service, "red")

    def change(name: str, label: str) -> float:
        return after[name, label] - before.get((name, label), 0)

    read, said = (
        sum(getattr(each.usage, kind) for each in (plain, last)) for kind in ("prompt_tokens", "completion_tokens")
    )
    assert change("llamaswap_tokens_total", "output") == said
    assert change("llamaswap_tokens_total", "input") + change("llamaswap_tokens_total", "cached") == read
    assert change("llamaswap_requests_total", "200") == 2
    assert change("llamaswap_requests_total", str(refused.value.status_code)) == 1
    assert change("llamaswap_request_duration_seconds_count", "") == 3


def test_the_metrics_are_as_prometheus_wants_them(service: Service, client: Any) -> None:
    client.chat.completions.create(model="red", messages=QUESTION, max_tokens=8)
    text = scrape(service)
    names = [family.name for family in text_string_to_metric_families(text)]
    assert len(names) == len(set(names))
    assert {"llamaswap_requests", "llamaswap_tokens", "llamaswap_load_duration_seconds"} <= set(names)
    if promtool := shutil.which("promtool"):
        checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "loading"])
async def test_the_log_says_how_much_a_client_got_before_it_left(service: Service, rows: Rows, is_ready: bool) -> None:
    agent = f"editor of a model that is {'ready' if is_ready else 'loading'}"
    with openai.OpenAI(**service.openai()) as client:
        client.chat.completions.create(model="scripted" if is_ready else "red", messages=QUESTION, max_tokens=1)
        rows.next()
        options = {"stream": True, "extra_body": {"until": NEVER}, "extra_headers": {"User-Agent": agent}}
        stream = client.chat.completions.create(model="scripted", messages=QUESTION, **options)
        next(iter(stream))
        stream.close()
    line = await service.daemon.logged(agent)
    status, size = line.partition('HTTP/1.1" ')[2].split()[:2]
    assert int(status) == rows.next()["resp_status_code"] == 200
    assert int(size) > 0


def scrape(service: Service) -> str:
    request = urllib.request.Request(f"{service.url}/metrics", headers=BEARER)
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return str(answer.read().decode())


def counted(service: Service, model: str) -> dict[tuple[str, str], float]:
    """Return what has been counted of a model: by metric, and kind or status if it has such."""
    found = {}
    for family in text_string_to_metric_families(scrape(service)):
        for sample in family.samples:
            if sample.labels.get("model") == model and "le" not in sample.labels:
                found[sample.name, sample.labels.get("kind") or sample.labels.get("status") or ""] = sample.value
    return found
