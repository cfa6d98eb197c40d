"""How clients behave: they ask one after the other, retry, give up, leave, and speak HTTP of all kinds."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from daemon_support import Json
from traffic import BEARER, KEY, WAIT_S, Rows, Service, counts

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.engine, pytest.mark.private]

QUESTION = [{"role": "user", "content": "What does a slice do?"}]
JSON = {"Content-Type": "application/json"}
NEVER = "/nonexistent"  # a file that a model waits for
AT_ONCE = 8

with_curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


# ---- Open WebUI: a page in a browser, and a server that asks with aiohttp


def test_a_page_may_ask_for_the_models(service: Service) -> None:
    origin = {"Origin": "http://webui.example:3000"}
    wanted = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization,x-user-name"}
    with closing(service.connect()) as connection:
        preflight = ask(connection, "OPTIONS", "/v1/models", headers={**origin, **wanted})
        listing = ask(connection, "GET", "/v1/models", headers={**origin, **BEARER})
        models = json.loads(listing.body)["data"]
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "*"
    assert preflight.headers["Access-Control-Allow-Headers"] == "authorization, x-user-name"
    assert listing.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    assert "red" in [model["id"] for model in models]
    assert {model["object"] for model in models} == {"model"}


@pytest.mark.parametrize("model", ["shown", "shown-packed"])
def test_a_model_that_shows_its_loading_answers_after_it(client: Any, rows: Rows, model: str) -> None:
    client.chat.completions.create(model="scripted", messages=QUESTION)  # which has the other one unloaded
    rows.next()
    usage = {"stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model=model, messages=QUESTION, stream=True, **usage))
    said = [choice.delta for chunk in chunks for choice in chunk.choices]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in said)
    assert f"loading model: {model}\n" in thoughts
    assert "Done!" in thoughts
    assert "".join(delta.content or "" for delta in said) == "I have read 21 characters"
    assert counts(rows.next()) == (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens)


def test_a_helper_that_checks_every_chunk_is_not_disturbed_by_the_loading(client: Any) -> None:
    client.chat.completions.create(model="scripted", messages=QUESTION)
    with client.chat.completions.stream(model="shown", messages=QUESTION) as stream:
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == "I have read 21 characters"


@pytest.mark.parametrize(("stream", "error"), [(True, openai.APIError), (False, openai.InternalServerError)])
def test_a_client_is_told_that_a_model_does_not_load(client: Any, stream: bool, error: type[Exception]) -> None:
    with pytest.raises(error, match="upstream command exited prematurely"):
        list(client.chat.completions.create(model="broken", messages=QUESTION, stream=stream))


async def test_a_conversation_with_its_title_and_its_tags_at_the_same_time(service: Service) -> None:
    forwarded = {"X-OpenWebUI-User-Name": "Zo%C3%AB", "X-OpenWebUI-Chat-Id": "1"}
    question = {"stream": True, "stream_options": {"include_usage": True}, "model": "red", "messages": QUESTION}
    async with aiohttp.ClientSession(service.url, headers={**BEARER, **forwarded}) as session:

        async def words() -> list[str]:
            async with session.post("/v1/chat/completions", json={**question, "max_tokens": 64}) as answer:
                lines = [line.decode().strip() async for line in answer.content]
            assert lines[-2:] == ["data: [DONE]", ""]
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
            assert chunks[-1]["usage"]["completion_tokens"] == 64
            return [delta["content"] for each in chunks for delta in deltas(each) if delta.get("content")]

        async def task() -> int:
            body = {"model": "red", "messages": QUESTION, "stream": False, "max_tokens": 8}
            async with session.post("/v1/chat/completions", json=body) as answer:
                return int((await answer.json())["usage"]["completion_tokens"])

        said, *tasks = await asyncio.gather(words(), task(), task(), task())
    assert len(said) == 64
    assert tasks == [8, 8, 8]


# ---- aider: one request after the other, each longer than the one before; tries again when told to


def test_a_conversation_that_grows_is_read_whole_every_time(client: Any, rows: Rows) -> None:
    messages: list[Json] = []
    for turn in range(12):
        messages.append({"role": "user", "content": f"{turn} def f(): pass\n" * 1000})
        answer = client.chat.completions.create(model="scripted", messages=messages)
        length = sum(len(message["content"]) for message in messages)
        assert answer.choices[0].message.content == f"I have read {length} characters"
        assert counts(rows.next()) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    assert length > 190_000


def test_a_client_that_is_told_to_wait_for_its_turn_tries_again(service: Service, rows: Rows, tmp_path: Path) -> None:
    answers: list[tuple[int, str | None]] = []

    def answered(response: Any) -> None:
        answers.append((response.status_code, response.headers.get("Retry-After")))
        (tmp_path / "it").touch()  # the first client's stream ends

    with (
        openai.OpenAI(**service.openai()) as first,
        openai.DefaultHttpxClient(event_hooks={"response": [answered]}) as http,
        openai.OpenAI(**service.openai(max_retries=5, http_client=http)) as second,
    ):
        options = {"until": f"{tmp_path}/it"}
        stream = first.chat.completions.create(model="narrow", messages=QUESTION, stream=True, extra_body=options)
        next(iter(stream))
        answer = second.chat.completions.create(model="narrow", messages=QUESTION)
        list(stream)
    assert answer.choices[0].message.content == "I have read 21 characters"
    assert answers[0] == (429, "1")
    assert answers[-1] == (200, None)
    assert {rows.next()["resp_status_code"] for _ in range(1 + len(answers))} == {200, 429}


def test_a_client_that_the_model_refuses_for_a_moment_tries_again(service: Service, rows: Rows) -> None:
    with openai.OpenAI(**service.openai(max_retries=2)) as client:
        options = {"refuse": [503, 0.01, 2]}
        answer = client.chat.completions.create(model="scripted", messages=QUESTION, extra_body=options)
    assert answer.choices[0].message.content == "I have read 21 characters"
    tries = [rows.next() for _ in range(3)]
    assert [row["resp_status_code"] for row in tries] == [503, 503, 200]
    assert [row.get("error_msg") for row in tries] == ["busy", "busy", None]


def test_anthropics_client_tries_again_too(service: Service, rows: Rows) -> None:
    with anthropic.Anthropic(**service.anthropic(max_retries=1)) as client:
        overloaded = {"refuse": [529, 0.01, 1]}
        message = client.messages.create(model="scripted", messages=QUESTION, max_tokens=9, extra_body=overloaded)
    assert message.content[0].text == "I have read 21 characters"
    assert [rows.next()["resp_status_code"] for _ in range(2)] == [529, 200]


# ---- continue: asks at every key, and leaves when the next is pressed


@pytest.mark.parametrize("options", [{"stream": True}, {}], ids=["streams", "answers"])
async def test_completions_that_are_no_longer_wanted_are_cancelled_at_the_model(
    service: Service, async_client: Any, options: Json
) -> None:
    async def complete() -> None:
        body = {"until": NEVER}
        answer = await async_client.chat.completions.create(
            model="scripted", messages=QUESTION, extra_body=body, **options
        )
        async for _ in answer:
            pass

    await async_client.chat.completions.create(model="scripted", messages=QUESTION)
    left = (await asyncio.to_thread(service.stats, "scripted"))["left"]
    keys = [asyncio.create_task(complete()) for _ in range(AT_ONCE)]
    await asyncio.to_thread(service.stats, "scripted", waiting=AT_ONCE)
    for key in keys:
        key.cancel()
    await asyncio.gather(*keys, return_exceptions=True)
    await asyncio.to_thread(service.stats, "scripted", left=left + AT_ONCE)
    assert (await asyncio.to_thread(service.stats, "scripted"))["waiting"] == 0


async def test_llama_cpp_stops_a_completion_that_is_no_longer_wanted(service: Service, async_client: Any) -> None:
    async def complete() -> None:
        stream = await async_client.completions.create(model="blue", prompt="every", max_tokens=-1, stream=True)
        async with stream:
            await anext(stream)

    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(complete() for _ in range(AT_ONCE)))
        while any(slot["is_processing"] for slot in await asyncio.to_thread(service.ask, "/upstream/blue/slots")):
            pass


def test_a_stream_that_its_client_closes_is_cancelled_at_the_model(service: Service, client: Any, rows: Rows) -> None:
    client.chat.completions.create(model="scripted", messages=QUESTION)
    assert rows.next()["resp_status_code"] == 200
    left, body = service.stats("scripted")["left"], {"until": NEVER}
    with client.chat.completions.create(model="scripted", messages=QUESTION, stream=True, extra_body=body) as stream:
        next(iter(stream))
    service.stats("scripted", left=left + 1)
    row = rows.next()
    assert (row["model"], row["req_path"], row["resp_status_code"]) == ("scripted", "/v1/chat/completions", 200)


def test_a_request_that_its_client_gives_up_is_cancelled_at_the_model(
    service: Service, client: Any, rows: Rows
) -> None:
    client.chat.completions.create(model="scripted", messages=QUESTION)
    assert rows.next()["resp_status_code"] == 200
    body = {"until": NEVER}
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="scripted", messages=QUESTION, extra_body=body, timeout=0.5)
    row = rows.next()
    assert (row["resp_status_code"], counts(row)) == (499, (0, 0))
    service.stats("scripted", waiting=0)


# ---- HTTP of all kinds


def test_one_connection_serves_models_in_turn(service: Service) -> None:
    with closing(service.connect()) as connection:
        connection.connect()
        port = connection.sock.getsockname()
        for model in ("red", "scripted", "red", "red", "scripted"):
            body = json.dumps({"model": model, "messages": QUESTION, "max_tokens": 4})
            answer = ask(connection, "POST", "/v1/chat/completions", body, {**BEARER, **JSON})
            assert answer.status == 200
            assert json.loads(answer.body)["usage"]["completion_tokens"] > 0
            assert connection.sock.getsockname() == port


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["red", "scripted", "packed"])
def test_a_client_of_http_1_0_gets_it_all_without_chunks(service: Service, model: str, stream: bool) -> None:
    body = {"model": model, "messages": QUESTION, "max_tokens": 8, "stream": stream}
    connection: Any = service.connect()
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
    with closing(connection):
        answer = ask(connection, "POST", "/v1/chat/completions", json.dumps(body), {**BEARER, **JSON})
    assert answer.status == 200
    assert "Transfer-Encoding" not in answer.headers
    assert answer.body.endswith(b"data: [DONE]\n\n" if stream else b"}")


@with_curl
@pytest.mark.parametrize("length", [(), ("-H", "Transfer-Encoding: chunked")], ids=["length", "chunks"])
def test_curl_is_told_to_go_on_and_uploads_a_file(service: Service, tmp_path: Path, length: tuple[str, ...]) -> None:
    text = "a slice " * 500_000
    question = {"messages": [{"role": "user", "content": text}], "model": "scripted"}
    (tmp_path / "question").write_text(json.dumps(question))
    going_on = ("--expect100-timeout", str(WAIT_S), "-H", "Expect: 100-continue")
    said = curl(service, "-v", "-X", "POST", "-T", f"{tmp_path}/question", *going_on, *length)
    assert "< HTTP/1.1 100 Continue" in said.stderr
    content = json.loads(said.stdout)["choices"][0]["message"]["content"]
    assert content == f"I have read {len(text)} characters"


@with_curl
def test_curl_unpacks_what_it_asked_to_have_packed(service: Service, rows: Rows) -> None:
    question = json.dumps({"model": "packed", "messages": QUESTION, "stream": True})
    said = curl(service, "-v", "--compressed", "-N", "-d", question)
    assert "content-encoding: gzip" in said.stderr.lower()
    assert said.stdout.endswith("data: [DONE]\n\n")
    assert rows.capture(rows.next())[1].decode() == said.stdout


def test_all_three_ways_to_show_a_key_let_in(service: Service) -> None:
    with openai.OpenAI(**service.openai()) as client:
        assert client.models.list().data
    for shown in ({"api_key": KEY}, {"auth_token": KEY, "api_key": None}):
        with anthropic.Anthropic(**service.anthropic(**shown)) as client:
            assert client.messages.count_tokens(model="red", messages=QUESTION).input_tokens
    with closing(service.connect()) as connection:
        basic = f"Basic {base64.b64encode(f'anybody:{KEY}'.encode()).decode()}"
        assert ask(connection, "GET", "/v1/models", headers={"Authorization": basic}).status == 200
        assert ask(connection, "GET", "/v1/models").status == 401


# ---- the asking


class Whole:
    """An answer, read to its end."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def ask(connection: HTTPConnection, method: str, path: str, body: Any = None, headers: Any = None) -> Whole:
    connection.request(method, path, body, headers or {})
    return Whole(connection.getresponse())


def curl(service: Service, *words: str) -> subprocess.CompletedProcess[str]:
    headers = [word for name, value in {**BEARER, **JSON}.items() for word in ("-H", f"{name}: {value}")]
    argv = ["curl", "-sS", "--noproxy", "*", *headers, *words, f"{service.url}/v1/chat/completions"]
    return subprocess.run(argv, check=True, capture_output=True, text=True)


def deltas(chunk: Json) -> list[Json]:
    return [choice["delta"] for choice in chunk["choices"]]
