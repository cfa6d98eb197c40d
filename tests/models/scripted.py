"""A model server for tests that speaks OpenAI's interface and does what a tiny model cannot: tools, pictures, sound.

usage: scripted.py PORT [--gzip]         needs: the standard library, so `python -S -E` starts it fast

  --gzip    pack answers for clients that accept it, streams event by event

Nothing it says is random, so that a client can tell whether all of its request has come:

  /v1/chat/completions       a call of the first tool; what the tool said; the digests of the pictures; or else how many
                             characters it has read
  /v1/messages               the same, never streamed and without tools
  /v1/audio/transcriptions   the digest of the file; as JSON, text or events
  /v1/audio/speech           the sound of the text, SOUND bytes for each character, in chunks
  /v1/images/generations     a picture of the prompt, in base64
  /v1/images/edits           the picture again
  /stats                     how many answers are waiting for a file, and how many clients have left before their answer
  /stats?waiting=N, ?left=N  the same, once it is that many

One word is one token; every other token of a prompt was cached. A JSON body may ask for more: with `"until": FILE` a
stream goes on, and any other answer waits, until the file exists; with `"refuse": [STATUS, SECONDS, TIMES]` the first
tries of a client that counts them, as OpenAI's do, are refused with Retry-After.
"""

from __future__ import annotations

import base64
import email.policy
import gzip
import hashlib
import itertools
import json
import os
import select
import sys
import threading
import zlib
from collections.abc import Iterable, Iterator
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

SOUND = 4096
TICK_S = 0.01

Json = dict[str, Any]


class Stats:
    changed = threading.Condition()
    counts: ClassVar = {"waiting": 0, "left": 0}

    @classmethod
    def add(cls, name: str, change: int) -> None:
        with cls.changed:
            cls.counts[name] += change
            cls.changed.notify_all()


class ClientLeft(Exception):
    """The client has closed its connection before the answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    packs = False

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path != "/stats":
            return self.send_json({"status": "ok"})
        name, _, count = query.partition("=")
        with Stats.changed:
            Stats.changed.wait_for(lambda: not name or Stats.counts[name] == int(count))
            return self.send_json(Stats.counts)

    def do_POST(self) -> None:
        body = self.read_body()
        is_json = "json" in self.headers["Content-Type"]
        question = json.loads(body) if is_json else form(self.headers["Content-Type"], body)
        try:
            self.reply(question)
        except (ClientLeft, OSError):
            self.close_connection = True
            Stats.add("left", 1)

    def read_body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, question: Json) -> None:
        status, seconds, times = question.get("refuse", (0, 0, 0))
        if int(self.headers.get("x-stainless-retry-count", 0)) < times:
            return self.send_json({"error": {"message": "busy"}}, status, {"Retry-After": str(seconds)})
        match self.path:
            case "/v1/chat/completions":
                return self.chat(question)
            case "/v1/messages":
                return self.send_json(message(question))
            case "/v1/audio/transcriptions":
                return self.transcribe(question)
            case "/v1/audio/speech":
                return self.send_pieces("audio/wav", sound(question["input"]))
            case "/v1/images/generations":
                return self.send_json(pictures(picture(question["prompt"])))
            case "/v1/images/edits":
                return self.send_json(pictures(question["image"]))
        return self.send_json({"error": {"message": f"no {self.path} here"}}, 404)

    # ---- chat

    def chat(self, question: Json) -> None:
        pieces = [*say(question)]
        usage = usage_of(question["messages"], len(pieces))
        if not question.get("stream"):
            self.wait(question)
            return self.send_json({**completion(question, "chat.completion", "message", whole(pieces)), "usage": usage})
        chunks = [completion(question, "chat.completion.chunk", "delta", piece) for piece in pieces]
        if question.get("stream_options", {}).get("include_usage"):
            chunks.append({**completion(question, "chat.completion.chunk"), "usage": usage})
        more = self.until(question, chunks[0])
        return self.send_pieces("text/event-stream", map(event, itertools.chain(more, chunks, ["[DONE]"])))

    def until(self, question: Json, chunk: Json) -> Iterator[Json]:
        """Say the same again and again until the file exists."""
        if "until" not in question:
            return
        Stats.add("waiting", 1)
        try:
            while not os.path.exists(question["until"]):
                yield chunk
                self.look(TICK_S)
        finally:
            Stats.add("waiting", -1)

    def wait(self, question: Json) -> None:
        for _ in self.until(question, {}):
            pass

    def look(self, timeout_s: float) -> None:
        """Wait a moment, unless the client has left by then, or has something more to say, which none does."""
        if select.select([self.connection], [], [], timeout_s)[0]:
            raise ClientLeft

    # ---- sound

    def transcribe(self, form: Json) -> None:
        text = digest(form["file"])
        usage = {"type": "tokens", "input_tokens": len(form["file"]) // 1000, "output_tokens": 1, "total_tokens": 1}
        if form.get("stream"):
            delta = {"type": "transcript.text.delta", "delta": text}
            done = {"type": "transcript.text.done", "text": text, "usage": usage}
            return self.send_pieces("text/event-stream", [event(delta), event(done)])
        if form.get("response_format") == b"text":
            return self.send(f"{text}\n".encode(), "text/plain")
        return self.send_json({"text": text, "usage": usage})

    # ---- HTTP

    def send_json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(value).encode(), "application/json", status, headers or {})

    def send(self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        packs = self.packs_this()
        body = gzip.compress(body) if packs else body
        self.send_head(status, kind, packs, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def send_pieces(self, kind: str, pieces: Iterable[bytes]) -> None:
        packs = self.packs_this()
        self.send_head(200, kind, packs, {"Transfer-Encoding": "chunked"})
        packer = zlib.compressobj(wbits=31)
        for piece in pieces:
            self.send_chunk(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) if packs else piece)
        if packs:
            self.send_chunk(packer.flush())
        self.send_chunk(b"")

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_head(self, status: int, kind: str, packs: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **({"Content-Encoding": "gzip"} if packs else {}), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def packs_this(self) -> bool:
        return self.packs and "gzip" in self.headers.get("Accept-Encoding", "")

    def log_message(self, format: str, *args: object) -> None:
        pass


def form(content_type: str, body: bytes) -> Json:
    """Return the fields of a form as bytes."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    parts = BytesParser(policy=email.policy.HTTP).parsebytes(head + body).iter_parts()
    return {part.get_param("name", header="Content-Disposition"): part.get_payload(decode=True) for part in parts}


# ---- what is said


def say(question: Json) -> Iterator[Json]:
    """Yield what is said, in the pieces of a stream."""
    last = question["messages"][-1]
    if last["role"] == "tool":
        yield from words(f"the tool said {last['content']}")
    elif tools := question.get("tools"):
        yield from call(tools[0]["function"])
    elif shown := images(last["content"]):
        yield from words(" ".join(map(digest, shown)))
    else:
        yield from words(f"I have read {sum(len(str(each['content'])) for each in question['messages'])} characters")


def words(text: str) -> Iterator[Json]:
    yield {"role": "assistant", "content": ""}
    yield from ({"content": word} for word in text.replace(" ", " \0").split("\0"))


def call(tool: Json) -> Iterator[Json]:
    arguments = json.dumps({name: f"some {name}" for name in tool["parameters"]["properties"]})
    named = {"id": "call-1", "type": "function", "function": {"name": tool["name"], "arguments": ""}}
    yield {"role": "assistant", "tool_calls": [{"index": 0, **named}]}
    for start in range(0, len(arguments), 4):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": arguments[start : start + 4]}}]}


def whole(pieces: list[Json]) -> Json:
    """Return the message that these pieces make."""
    first = pieces[0]
    if "tool_calls" not in first:
        return {"role": "assistant", "content": "".join(piece["content"] for piece in pieces)}
    told = "".join(piece["tool_calls"][0]["function"]["arguments"] for piece in pieces)
    function = {**first["tool_calls"][0]["function"], "arguments": told}
    return {"role": "assistant", "content": None, "tool_calls": [{**first["tool_calls"][0], "function": function}]}


def message(question: Json) -> Json:
    """Return a message as Anthropic's."""
    text = whole([*say(question)])["content"]
    ending = {"stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": len(text.split())}}
    kind = {"id": "message-1", "type": "message", "role": "assistant", "model": question["model"]}
    return {**kind, "content": [{"type": "text", "text": text}], **ending}


def completion(question: Json, kind: str, part: str = "", said: Json | None = None) -> Json:
    """Return an answer, or a chunk of one, without `said` one that has only the usage to tell."""
    reason = "tool_calls" if said and "tool_calls" in said else "stop"
    choices = [{"index": 0, part: said, "finish_reason": reason}] if said else []
    return {"id": "chat-1", "object": kind, "created": 1, "model": question["model"], "choices": choices}


def usage_of(messages: list[Json], completion_tokens: int) -> Json:
    prompt_tokens = sum(len(str(message["content"]).split()) for message in messages)
    total = prompt_tokens + completion_tokens
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
    return {**counts, "prompt_tokens_details": {"cached_tokens": prompt_tokens // 2}}


def images(content: str | list[Json]) -> list[bytes]:
    """Return the pictures in a message."""
    urls = [part["image_url"]["url"] for part in content if isinstance(part, dict) and part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


def pictures(*data: bytes) -> Json:
    usage = {"input_tokens": 3, "output_tokens": len(data), "total_tokens": 3 + len(data)}
    return {"created": 1, "data": [{"b64_json": base64.b64encode(each).decode()} for each in data], "usage": usage}


def picture(prompt: str) -> bytes:
    return b"\x89PNG" + prompt.encode() * 100_000


def sound(text: str) -> Iterator[bytes]:
    return (character.encode() * SOUND for character in text)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def event(data: object) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that left is no news


if __name__ == "__main__":
    Handler.packs = "--gzip" in sys.argv
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
