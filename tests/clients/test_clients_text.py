"""What clients ask of llama.cpp, and that the daemon has noted of it what they have seen."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import pytest
from daemon_support import Json
from traffic import Rows, Service, counts, counts_of_llama_cpp

pytestmark = [pytest.mark.engine, pytest.mark.private]

QUESTION = [{"role": "user", "content": "What does a slice do?"}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
IN_THE_MIDDLE = {"input_prefix": "every ", "input_suffix": " world", "n_predict": 6}
BATCH = 256


# ---- chat


def test_the_usage_and_speed_of_a_chat_are_in_its_row(client: Any, rows: Rows) -> None:
    completion = client.chat.completions.create(model="red", messages=QUESTION, max_tokens=8)
    row = rows.next()
    assert counts_of_llama_cpp(row) == (completion.usage.prompt_tokens, completion.usage.completion_tokens)
    assert_tells_timings(row, completion.timings)
    assert (row["model"], row["req_path"], row["resp_status_code"]) == ("red", "/v1/chat/completions", 200)


def test_the_usage_and_speed_of_a_streamed_chat_are_in_its_row(client: Any, rows: Rows) -> None:
    *_, last = client.chat.completions.create(model="red", messages=QUESTION, max_tokens=8, **STREAM)
    row = rows.next()
    assert counts_of_llama_cpp(row) == (last.usage.prompt_tokens, last.usage.completion_tokens)
    assert_tells_timings(row, last.timings)
    assert row["resp_content_type"] == "text/event-stream"


@pytest.mark.skipif(pydantic.VERSION.startswith("1."), reason="OpenAI's client parses answers with pydantic 2 only")
def test_an_answer_has_the_shape_that_was_asked_for(client: Any, rows: Rows) -> None:
    class Choice(pydantic.BaseModel):
        color: Literal["red", "blue"]
        sure: bool

    completion = client.chat.completions.parse(
        model="red", messages=QUESTION, response_format=Choice, max_tokens=200, temperature=0
    )
    assert completion.choices[0].message.parsed.color in ("red", "blue")
    assert counts(rows.next())[1] == completion.usage.completion_tokens


def test_a_prompt_that_is_too_long_is_refused_in_the_engines_words_and_the_row_has_them(
    client: Any, rows: Rows
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="red", messages=[{"role": "user", "content": "the world " * 5000}])
    row = rows.next()
    assert row["resp_status_code"] == 400
    assert row["error_msg"] in str(refused.value)
    assert "exceeds the available context size" in row["error_msg"]


def test_the_usage_of_a_streamed_response_is_in_its_row(client: Any, rows: Rows) -> None:
    *_, last = client.responses.create(model="red", input="every model", max_output_tokens=4, stream=True)
    assert last.type == "response.completed"
    usage = last.response.usage
    assert counts_of_llama_cpp(rows.next()) == (usage.input_tokens, usage.output_tokens)


# ---- anthropic


def test_the_usage_of_a_message_is_in_its_row(messages_client: Any, rows: Rows) -> None:
    usage = messages_client.messages.create(model="red", messages=QUESTION, max_tokens=8).usage
    row = rows.next()
    assert counts(row) == (usage.input_tokens, usage.output_tokens)
    assert row["tokens"]["cache_tokens"] == usage.cache_read_input_tokens


def test_the_usage_of_a_streamed_message_is_in_its_row(messages_client: Any, rows: Rows) -> None:
    with messages_client.messages.stream(model="red", messages=QUESTION, max_tokens=8, system="Sing.") as stream:
        assert len(list(stream.text_stream)) == 8
        usage = stream.get_final_message().usage
    row = rows.next()
    assert counts(row) == (usage.input_tokens, usage.output_tokens)
    assert row["tokens"]["cache_tokens"] == usage.cache_read_input_tokens


def test_counting_tokens_leaves_a_row_without_any(messages_client: Any, rows: Rows) -> None:
    counted = messages_client.messages.count_tokens(model="red", messages=QUESTION)
    row = rows.next()
    assert (row["req_path"], *counts(row)) == ("/v1/messages/count_tokens", 0, 0)
    messages_client.messages.create(model="red", messages=QUESTION, max_tokens=1)
    row = rows.next()
    assert counted.input_tokens == row["tokens"]["input_tokens"] + row["tokens"]["cache_tokens"]


# ---- the text of an editor


def test_the_usage_of_a_streamed_completion_is_in_its_row(client: Any, rows: Rows) -> None:
    chunks = list(client.completions.create(model="blue", prompt="every model", max_tokens=8, **STREAM))
    assert len("".join(choice.text for chunk in chunks for choice in chunk.choices).split()) == 8
    usage = chunks[-1].usage
    assert counts_of_llama_cpp(rows.next()) == (usage.prompt_tokens, usage.completion_tokens)


def test_a_text_is_completed_in_its_middle(client: Any, rows: Rows) -> None:
    completion = client.completions.create(model="blue", prompt="every", suffix="world", max_tokens=3)
    assert len(completion.choices[0].text.split()) == 3
    assert counts(rows.next())[1] == 3


def test_an_infill_of_llama_cpps_own_is_counted(service: Service, rows: Rows) -> None:
    answer = service.ask("/infill", {"model": "blue", **IN_THE_MIDDLE})
    row = rows.next()
    assert counts_of_llama_cpp(row) == (answer["tokens_evaluated"], answer["tokens_predicted"])
    assert_tells_timings(row, answer["timings"])


def test_a_streamed_infill_of_llama_cpps_own_is_counted(service: Service, rows: Rows) -> None:
    chunks = service.stream("/infill", {"model": "blue", "stream": True, **IN_THE_MIDDLE})
    assert len("".join(chunk["content"] for chunk in chunks).split()) == 6
    row = rows.next()
    assert counts(row)[1] == chunks[-1]["tokens_predicted"] == 6
    assert_tells_timings(row, chunks[-1]["timings"])


def test_llama_cpps_own_routes_are_at_hand(service: Service) -> None:
    assert service.ask("/props?model=blue")["default_generation_settings"]["n_ctx"] > 0
    tokens = service.ask("/upstream/blue/tokenize", {"content": "every world"})["tokens"]
    assert service.ask("/upstream/blue/detokenize", {"tokens": tokens})["content"] == "▁every▁world"
    assert [slot["is_processing"] for slot in service.ask("/upstream/blue/slots")] == [False, False]
    assert service.ask("/completion", {"model": "blue", "prompt": "every", "n_predict": 2})["tokens_predicted"] == 2


# ---- vectors, ranks


def test_a_large_batch_is_embedded_in_order_and_counted(client: Any, rows: Rows) -> None:
    texts = [f"model {number}" for number in range(BATCH)]
    batch = client.embeddings.create(model="vectors", input=texts)
    assert [each.index for each in batch.data] == [*range(BATCH)]
    assert counts(rows.next()) == (batch.usage.prompt_tokens, 0)
    alone = client.embeddings.create(model="vectors", input=texts[-1]).data[0]
    assert alone.embedding == pytest.approx(batch.data[-1].embedding, abs=1e-3)


def test_vectors_are_the_same_in_both_encodings(client: Any) -> None:
    packed = client.embeddings.create(model="vectors", input="the world")  # base64, which the client reads
    plain = client.embeddings.create(model="vectors", input="the world", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-3)
    assert isinstance(
        client.embeddings.create(model="vectors", input="a", encoding_format="base64").data[0].embedding, str
    )


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking", "/v/rerank"])
def test_documents_are_ranked_and_counted(service: Service, rows: Rows, path: str) -> None:
    question = {"model": "ranks", "query": "the world", "documents": ["a slice", "a unit", "hello"], "top_n": 2}
    ranking = service.ask(path, question)
    scores = [result["relevance_score"] for result in ranking["results"]]
    assert scores == sorted(scores, reverse=True)
    assert len({result["index"] for result in ranking["results"]}) == 2
    assert counts(rows.next()) == (ranking["usage"]["prompt_tokens"], 0)


def assert_tells_timings(row: Json, timings: Json) -> None:
    told = {name: row["tokens"][name] for name in ("prompt_per_second", "tokens_per_second", "cache_tokens")}
    said = {"prompt_per_second": "prompt_per_second", "tokens_per_second": "predicted_per_second"}
    assert told == {name: timings[where] for name, where in {**said, "cache_tokens": "cache_n"}.items()}
