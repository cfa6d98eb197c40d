"""The clients that people use, against models on llama.cpp itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import daemon_support
import pytest

from llamaswapd.systemd.private import PrivateManager

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")
pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

pytestmark = [pytest.mark.engine, pytest.mark.private]

ENGINE = Path(__file__).parent / "engine"
MODELS = {"red": "", "blue": "", "vectors": "--pooling mean", "ranks": "--pooling rank"}  # id: options of its server
KEY = "sk-of-the-clients"
MANY = 10  # as many as concurrencyLimit lets in
QUESTION = [{"role": "user", "content": "What does a slice do?"}]

with_key = pytest.mark.parametrize("daemon", [KEY], indirect=True, ids=["keyed"])


@dataclass(frozen=True)
class Daemon:
    url: str
    key: str

    def client_options(self, **changes: Any) -> dict[str, Any]:
        """Return what openai's clients are made with; `changes` override."""
        return {"base_url": f"{self.url}/v1", "api_key": self.key, "max_retries": 0, **changes}

    def anthropic_options(self, **changes: Any) -> dict[str, Any]:
        return self.client_options(**{"base_url": self.url, **changes})

    def running(self) -> dict[str, str]:
        """Return what is running: model id → the address of its server."""
        request = urllib.request.Request(f"{self.url}/running", headers={"x-api-key": self.key})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return {model["model"]: model["proxy"] for model in json.load(answer)["running"]}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with the models' files; its path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="llamaswapd-"))
    try:
        for seed, name in enumerate(MODELS):
            subprocess.run([sys.executable, ENGINE / "make_tiny_gguf.py", path / name, str(seed)], check=True)
        yield path
    finally:
        daemon_support.clear_away(path)
        shutil.rmtree(path)


@pytest.fixture(scope="module", params=["", KEY], ids=["open", "keyed"])
def daemon(request: pytest.FixtureRequest, private: PrivateManager, folder: Path) -> Iterator[Daemon]:
    """A daemon with or without `apiKeys`. It has a manager of its own; `private` is there to skip where none can be."""
    key: str = request.param
    server = f"{sys.executable} {ENGINE}/serve_llama_cpp.py {folder}"
    models = {name: {"cmd": f"{server}/{name} ${{PORT}} {options}"} for name, options in MODELS.items()}
    config = {"models": models, "apiKeys": [key] if key else []}
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as environ:
        environ.setenv("NO_PROXY", "127.0.0.1")
        running = daemon_support.daemon(folder, config, "-manager", "private")
        yield Daemon(runner.run(running.__aenter__()).url, key or "not-needed")
        runner.run(running.__aexit__(None, None, None))


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Any]:
    with openai.OpenAI(**daemon.client_options()) as client:
        yield client


@pytest.fixture
async def async_client(daemon: Daemon) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(**daemon.client_options()) as client:
        yield client


@pytest.fixture
def messages_client(daemon: Daemon) -> Iterator[Any]:
    with anthropic.Anthropic(**daemon.anthropic_options()) as client:
        yield client


# ---- openai


def test_all_models_are_listed(client: Any) -> None:
    assert sorted(model.id for model in client.models.list()) == sorted(MODELS)


@pytest.mark.parametrize("model", ["red", "blue"])
def test_a_chat_completion_comes_from_the_model_that_was_named(daemon: Daemon, client: Any, model: str) -> None:
    completion = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=8)
    assert completion.usage.completion_tokens == 8
    assert completion.choices[0].finish_reason == "length"
    assert len(completion.choices[0].message.content.split()) == 8
    assert list(daemon.running()) == [model]


def test_a_streamed_chat_completion_arrives_token_by_token_and_ends_with_its_usage(client: Any) -> None:
    stream = client.chat.completions.create(
        model="red", messages=QUESTION, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    words = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(words) == 8
    assert chunks[-1].usage.completion_tokens == 8


def test_a_stream_says_what_the_engine_says(daemon: Daemon, client: Any) -> None:
    def words(client: Any) -> list[str]:
        stream = client.chat.completions.create(
            model="red", messages=QUESTION, max_tokens=32, temperature=0, stream=True
        )
        return [choice.delta.content for chunk in stream for choice in chunk.choices if choice.delta.content]

    relayed = words(client)
    with openai.OpenAI(**daemon.client_options(base_url=daemon.running()["red"] + "/v1")) as direct:
        assert relayed == words(direct)


def test_a_completion(client: Any) -> None:
    completion = client.completions.create(model="blue", prompt="every model", max_tokens=8)
    assert completion.usage.completion_tokens == 8
    assert len(completion.choices[0].text.split()) == 8


def test_a_streamed_completion(client: Any) -> None:
    stream = client.completions.create(model="blue", prompt="every model", max_tokens=8, stream=True)
    assert len("".join(chunk.choices[0].text for chunk in stream).split()) == 8


def test_a_response(client: Any) -> None:
    response = client.responses.create(model="blue", input="every model", max_output_tokens=8)
    assert len(response.output_text.split()) == 8


def test_embeddings(client: Any) -> None:
    first, second = client.embeddings.create(model="vectors", input=["the world", "a slice"]).data
    assert len(first.embedding) == len(second.embedding) == 64
    assert first.embedding != second.embedding


def test_a_ranking(client: Any) -> None:
    question = {"model": "ranks", "query": "the world", "documents": ["a slice", "a unit", "hello"]}
    ranking: Any = client.post("/rerank", body=question, cast_to=object)
    assert sorted(result["index"] for result in ranking["results"]) == [0, 1, 2]


def test_an_unknown_model_is_not_found_and_the_client_is_told_what_is_wrong(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match='no router for requested model: "rot" is not configured'):
        client.chat.completions.create(model="rot", messages=QUESTION)


def test_a_request_that_the_engine_refuses_is_refused_in_the_engines_words(client: Any) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model="red", input="the world")
    assert "embeddings" in refused.value.message
    assert refused.value.status_code == 501


def test_a_client_that_leaves_a_stream_gives_the_model_free(daemon: Daemon, client: Any) -> None:
    with client.chat.completions.create(model="red", messages=QUESTION, max_tokens=200, stream=True) as stream:
        next(iter(stream))
    client.chat.completions.create(model="blue", messages=QUESTION, max_tokens=1)
    assert list(daemon.running()) == ["blue"]


async def test_many_at_once_are_all_answered_by_one_model(async_client: Any) -> None:
    create = async_client.chat.completions.create
    completions = await asyncio.gather(*(create(model="red", messages=QUESTION, max_tokens=4) for _ in range(MANY)))
    assert [completion.usage.completion_tokens for completion in completions] == [4] * MANY


async def test_many_at_once_are_all_answered_while_models_swap(async_client: Any) -> None:
    create = async_client.chat.completions.create
    turns = ["red", "blue", "blue", "red"] * 3
    completions = await asyncio.gather(*(create(model=model, messages=QUESTION, max_tokens=4) for model in turns))
    assert [completion.usage.completion_tokens for completion in completions] == [4] * len(turns)


async def test_a_swap_waits_for_the_stream_that_is_under_way(daemon: Daemon, async_client: Any) -> None:
    create = async_client.chat.completions.create
    stream = await create(model="red", messages=QUESTION, max_tokens=200, stream=True)
    chunks = [await anext(stream)]
    swap = asyncio.create_task(create(model="blue", messages=QUESTION, max_tokens=4))
    chunks += [chunk async for chunk in stream]
    assert sum(bool(choice.delta.content) for chunk in chunks for choice in chunk.choices) == 200
    assert (await swap).usage.completion_tokens == 4
    assert list(daemon.running()) == ["blue"]


# ---- anthropic


def test_a_message(messages_client: Any) -> None:
    message = messages_client.messages.create(model="red", messages=QUESTION, max_tokens=8)
    assert message.usage.output_tokens == 8
    assert message.stop_reason == "max_tokens"
    assert len(message.content[0].text.split()) == 8


def test_a_streamed_message(messages_client: Any) -> None:
    with messages_client.messages.stream(model="blue", messages=QUESTION, max_tokens=8) as stream:
        words = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(words) == 8
    assert message.content[0].text == "".join(words)
    assert message.usage.output_tokens == 8


async def test_a_streamed_message_of_the_async_client(daemon: Daemon) -> None:
    async with (
        anthropic.AsyncAnthropic(**daemon.anthropic_options()) as client,
        client.messages.stream(model="red", messages=QUESTION, max_tokens=8) as stream,
    ):
        assert len([word async for word in stream.text_stream]) == 8


def test_the_tokens_of_a_message_are_counted(messages_client: Any) -> None:
    assert messages_client.messages.count_tokens(model="red", messages=QUESTION).input_tokens > 0


def test_an_unknown_model_is_not_found_by_anthropics_client_either(messages_client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match="no router for requested model"):
        messages_client.messages.create(model="rot", messages=QUESTION, max_tokens=8)


# ---- keys


@with_key
def test_a_wrong_key_is_refused(daemon: Daemon) -> None:
    with (
        openai.OpenAI(**daemon.client_options(api_key="sk-of-somebody-else")) as client,
        pytest.raises(openai.AuthenticationError, match="invalid or missing API key"),
    ):
        client.models.list()


@with_key
def test_no_key_is_refused(daemon: Daemon) -> None:
    with (
        openai.OpenAI(**daemon.client_options()) as client,
        pytest.raises(openai.AuthenticationError, match="invalid or missing API key"),
    ):
        client.models.list(extra_headers={"Authorization": openai.Omit()})


@with_key
def test_a_wrong_key_of_anthropics_client_is_refused(daemon: Daemon) -> None:
    with (
        anthropic.Anthropic(**daemon.anthropic_options(api_key="sk-of-somebody-else")) as client,
        pytest.raises(anthropic.AuthenticationError, match="invalid or missing API key"),
    ):
        client.messages.create(model="red", messages=QUESTION, max_tokens=8)
