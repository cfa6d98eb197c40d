"""Tools, pictures and sound: what clients send and get whole, plain and packed, and what is noted of it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import uuid
import wave
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemon_support import Json
from traffic import BEARER, Rows, Service, counts

pytestmark = [pytest.mark.engine, pytest.mark.private]

QUESTION = [{"role": "user", "content": "What is the weather like?"}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tell it", "parameters": WEATHER}}
CALLED_WITH = {"city": "some city", "unit": "some unit"}
MEGABYTE = 2**20

by_any_model = pytest.mark.parametrize("model", ["scripted", "packed"])


# ---- tools


@by_any_model
def test_a_tool_is_called_and_what_it_says_is_used(client: Any, rows: Rows, model: str) -> None:
    first = client.chat.completions.create(model=model, messages=QUESTION, tools=[TOOL])
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", CALLED_WITH)
    assert counts(rows.next()) == (first.usage.prompt_tokens, first.usage.completion_tokens)

    told = [first.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    second = client.chat.completions.create(model=model, messages=QUESTION + told, tools=[TOOL])
    assert second.choices[0].message.content == "the tool said rain"
    assert counts(rows.next()) == (second.usage.prompt_tokens, second.usage.completion_tokens)


@by_any_model
def test_a_streamed_call_of_a_tool_comes_in_pieces_and_is_counted(client: Any, rows: Rows, model: str) -> None:
    chunks = list(client.chat.completions.create(model=model, messages=QUESTION, tools=[TOOL], **STREAM))
    calls = [chunk.choices[0].delta.tool_calls[0] for chunk in chunks if chunk.choices]
    assert calls[0].function.name == "weather"
    assert len(calls) > 5
    assert json.loads("".join(call.function.arguments for call in calls)) == CALLED_WITH
    usage, row = chunks[-1].usage, rows.next()
    assert counts(row) == (usage.prompt_tokens, usage.completion_tokens)
    assert row["tokens"]["cache_tokens"] == usage.prompt_tokens_details.cached_tokens


@by_any_model
def test_a_capture_is_what_the_client_sent_and_got(client: Any, rows: Rows, model: str) -> None:
    streamed = client.chat.completions.with_streaming_response
    with streamed.create(model=model, messages=QUESTION, tools=[TOOL], **STREAM) as response:
        got = b"".join(response.iter_bytes())
        assert response.headers.get("Content-Encoding") == ("gzip" if model == "packed" else None)
    row = rows.next()
    assert row["has_capture"]
    assert rows.capture(row) == (response.http_request.content, got)
    assert got.endswith(b"data: [DONE]\n\n")


# ---- pictures


@by_any_model
@pytest.mark.parametrize("options", [{}, STREAM], ids=["whole", "streamed"])
def test_pictures_of_some_megabytes_arrive_and_are_kept(client: Any, rows: Rows, model: str, options: Json) -> None:
    shown = [noise(MEGABYTE + number) for number in range(3)]
    create = client.chat.completions.with_raw_response.create
    response = create(model=model, messages=[*QUESTION, showing(shown)], **options)
    answer = response.parse()
    assert (content(answer) if options else answer.choices[0].message.content) == digests(shown)
    assert rows.capture(rows.next())[0] == response.http_request.content


@pytest.mark.parametrize("model_first", [True, False])
def test_the_model_may_be_named_behind_pictures_of_some_megabytes(service: Service, model_first: bool) -> None:
    shown = [noise(MEGABYTE + number) for number in range(3)]
    question = [("model", "scripted"), ("messages", [*QUESTION, showing(shown)])]
    answer = service.ask("/v1/chat/completions", dict(question if model_first else reversed(question)))
    assert answer["choices"][0]["message"]["content"] == digests(shown)


def test_a_picture_is_made_and_changed(client: Any, rows: Rows) -> None:
    made = client.images.generate(model="scripted", prompt="a slice", response_format="b64_json")
    picture = base64.b64decode(made.data[0].b64_json)
    assert picture == b"\x89PNG" + b"a slice" * 100_000
    assert counts(rows.next()) == (made.usage.input_tokens, made.usage.output_tokens)

    changed = client.images.edit(model="scripted", prompt="red", image=("it.png", picture, "image/png"))
    assert base64.b64decode(changed.data[0].b64_json) == picture
    row = rows.next()
    assert (row["req_path"], counts(row)) == ("/v1/images/edits", (3, 1))
    assert rows.capture(row) == (b"", b"")


# ---- sound


@by_any_model
def test_a_sound_is_transcribed_and_counted(client: Any, rows: Rows, model: str) -> None:
    sound = wav()
    heard = client.audio.transcriptions.create(model=model, file=("it.wav", sound, "audio/wav"))
    assert heard.text == hashlib.sha256(sound).hexdigest()
    assert counts(rows.next()) == (heard.usage.input_tokens, heard.usage.output_tokens)


def test_a_sound_in_a_file_is_transcribed_as_text(service: Service, client: Any) -> None:
    file = service.folder / "it.wav"
    file.write_bytes(wav())
    heard = client.audio.transcriptions.create(model="scripted", file=file, language="en", response_format="text")
    assert heard.strip() == hashlib.sha256(wav()).hexdigest()


@by_any_model
def test_a_streamed_transcription_is_counted(client: Any, rows: Rows, model: str) -> None:
    events = list(client.audio.transcriptions.create(model=model, file=("it.wav", wav()), stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    usage = events[-1].usage
    assert counts(rows.next()) == (usage.input_tokens, usage.output_tokens)


@pytest.mark.parametrize("in_chunks", [False, True], ids=["with a length", "in chunks"])
def test_a_form_may_name_its_model_behind_the_sound(service: Service, rows: Rows, in_chunks: bool) -> None:
    sound, border = wav(), uuid.uuid4().hex
    form = part(border, 'name="file"; filename="it.wav"', sound) + part(border, 'name="model"', b"scripted")
    form += f"--{border}--\r\n".encode()
    headers = {**BEARER, "Content-Type": f"multipart/form-data; boundary={border}"}
    with closing(service.connect()) as connection:
        connection.request("POST", "/v1/audio/transcriptions", pieces(form) if in_chunks else form, headers)
        answer = json.load(connection.getresponse())
    assert answer.get("text") == hashlib.sha256(sound).hexdigest(), answer
    row = rows.next()
    assert (row["model"], row["tokens"]["input_tokens"]) == ("scripted", len(sound) // 1000)
    assert rows.capture(row)[0] == b""


@by_any_model
def test_speech_of_some_megabytes_is_streamed_into_a_file(client: Any, rows: Rows, tmp_path: Path, model: str) -> None:
    text = "All models are equal. " * 50
    with client.audio.speech.with_streaming_response.create(model=model, voice="alloy", input=text) as response:
        response.stream_to_file(tmp_path / "it.wav")
    assert (tmp_path / "it.wav").read_bytes() == b"".join(character.encode() * 4096 for character in text)
    row = rows.next()
    assert row["resp_content_type"] == "audio/wav"
    asked, kept = rows.capture(row)
    assert (json.loads(asked)["input"], kept) == (text, b"")


# ---- what is sent


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def showing(pictures: Iterable[bytes]) -> Json:
    """Return a message with pictures."""
    return {"role": "user", "content": [{"type": "text", "text": "What is it?"}, *map(as_image, pictures)]}


def digests(pictures: Iterable[bytes]) -> str:
    return " ".join(hashlib.sha256(each).hexdigest() for each in pictures)


def as_image(data: bytes) -> Json:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def wav() -> bytes:
    """Return half a minute of noise, 2.6 MB."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
        sound.writeframes(noise(30 * 44_100 * 2))
    return file.getvalue()


def part(border: str, disposition: str, data: bytes) -> bytes:
    return f"--{border}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + data + b"\r\n"


def pieces(data: bytes) -> Iterator[bytes]:
    yield from (data[start : start + 100_000] for start in range(0, len(data), 100_000))


def content(stream: Any) -> str:
    return "".join(choice.delta.content for chunk in stream for choice in chunk.choices)
