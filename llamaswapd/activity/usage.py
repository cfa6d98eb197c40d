"""How many tokens an answer took, and how fast they came: found in its body as llama-swap finds them.

Pure. All answers pass here that `glance` cannot tell of, so a body is parsed only if it holds one of three words, and
of it only what stands behind the first of them. What a model says is data: numbers of any size and kind are taken or
left, never raised at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

WORDS = (b'"usage"', b'"timings"', b'"metrics"')
MOST_TOKENS = 2**40  # of one answer; sums of them stay far below what SQLite can hold
CLIENT_LEFT = 499  # there was no answer: nginx's number for it
MESSAGE_LIMIT = 500  # characters of an error message, as in llama-swap
ENDS_BYTES = 64 * 1024  # of the end of a long body, in which usage is looked for
UNREADABLE = (ValueError, StopIteration, RecursionError)  # what reading JSON may end with
BOM = b"\xef\xbb\xbf"

# Reads the value that begins somewhere in a text, and says where it ends. `json.loads` guesses encodings first, which
# takes longer than to read a short answer.
scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

# The members of an object up to the first one that is no mere text or number.
_TEXT = rb'"(?:[^"\\]|\\.)*"'
_FLAT = re.compile(rb"\s*\{(?:\s*" + _TEXT + rb"\s*:\s*(?:" + _TEXT + rb'|[^\s"{}\[\],:]+)\s*,)*\s*', re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")


class Tokens(NamedTuple):
    """What a row says of tokens. Counts; speeds per second. -1: not known; all 0: nothing is known."""

    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    input: int = 0
    output: int = 0
    prompt_speed: float = 0.0
    speed: float = 0.0


NO_TOKENS = Tokens()
NOTHING = NO_TOKENS, 0.0


def of_json(body: bytes, *, is_infill: bool, is_cut: bool = False) -> tuple[Tokens, float]:
    """Return the tokens of a JSON answer, and how many ms its server says it took (0.0: nothing).

    `is_infill`: an array, whose last element counts. `is_cut`: the middle of the body is missing.
    """
    first = _first_word(body)
    if first < 0:
        return NOTHING
    outer = _outermost(body, first, is_cut=is_cut)
    if is_infill and isinstance(outer, list):
        last = outer[-1] if outer else None
        outer = {"timings": last.get("timings")} if isinstance(last, dict) else None
    if not isinstance(outer, dict):
        return NOTHING
    usage, timings, metrics = outer.get("usage"), outer.get("timings"), outer.get("metrics")
    if not (isinstance(usage, dict) or isinstance(timings, dict) or isinstance(metrics, dict)):
        return NOTHING
    found = counts(usage) if isinstance(usage, dict) else (None, None, None)
    return _result(found[0] or 0, found[1] or 0, -1 if found[2] is None else found[2], timings, metrics)


def of_stream(body: bytes) -> tuple[Tokens, float]:
    """Return the same of a stream of server-sent events."""
    return _of_events([found for event in _events_with_words(body) for found in _objects(event)])


def of_framed_stream(body: bytes) -> tuple[Tokens, float] | None:
    """Return the same of a stream that still is in its chunks; None if it has to be taken out of them first.

    Most servers send whole events, and then the framing stands between them, where nobody reads.
    """
    events = _events_with_words(body)
    found = [_objects(event) for event in events]
    return _of_events([each for of_event in found for each in of_event]) if found and all(found) else None


def of_cut_stream(body: bytes) -> tuple[Tokens, float]:
    """Return what the last `usage` says of a stream whose last event is not all there, as one with the whole answer."""
    at = body.rfind(WORDS[0])
    colon = _COLON.match(body, at + len(WORDS[0])) if at >= 0 else None
    if colon is None:
        return NOTHING
    try:
        found, _ = scan(body[colon.end() :].decode(errors="replace"), 0)
    except UNREADABLE:
        return NOTHING
    return _of_events([{"usage": found}])


def _of_events(events: Iterable[dict[str, Any]]) -> tuple[Tokens, float]:
    given, prompt, output, cached = False, 0, 0, -1
    timings: object = None
    metrics: object = None
    for event in events:
        message, response = event.get("message"), event.get("response")
        for holder in (event, response, message):
            usage = holder.get("usage") if isinstance(holder, dict) else None
            if isinstance(usage, dict):
                more_prompt, more_output, more_cached = more = counts(usage)
                given = given or more != (None, None, None)
                prompt, output = more_prompt or prompt, more_output or output
                cached = (more_cached or max(cached, 0)) if more_cached is not None else cached
        timings = event["timings"] if isinstance(event.get("timings"), dict) else timings
        metrics = event["metrics"] if isinstance(event.get("metrics"), dict) else metrics
    if not given and timings is None and metrics is None:
        return NOTHING
    return _result(prompt, output, cached, timings, metrics)


def error_message(body: bytes, status: int) -> str:
    """Return what an answer that is no success says went wrong: its own words, or else its status."""
    if body.lstrip().startswith((b"{", BOM)):
        said = _parsed(body)
        if isinstance(said, dict):
            error = said.get("error")
            inner = error.get("message") if isinstance(error, dict) else None
            for text in (inner, error, said.get("message"), said.get("detail")):
                if isinstance(text, str) and text.strip():
                    return shortened(text.strip())
    if status == CLIENT_LEFT:
        return f"{status} client left"
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP {status}"


def shortened(message: str) -> str:
    """Return what a row says of an error's message."""
    return message if len(message) <= MESSAGE_LIMIT else message[:MESSAGE_LIMIT] + "..."


# ---- finding the objects -------------------------------------------------------------------------------------------


def _first_word(body: bytes) -> int:
    """Return where the first of the words stands, -1 if there is none."""
    usage, timings, metrics = body.find(b'"usage"'), body.find(b'"timings"'), body.find(b'"metrics"')
    if timings < 0 and metrics < 0:
        return usage
    return min(at for at in (usage, timings, metrics) if at >= 0)


def _outermost(body: bytes, first: int, *, is_cut: bool) -> object:
    """Return the outermost members of a JSON body from the first word on, or all of it."""
    if is_cut:
        return _at_the_ends(body, first)
    if len(body) - first <= ENDS_BYTES:
        tail = _tail(body, first)
        if tail is not None:
            return tail
    elif found := _at_the_ends(body, first):
        return found
    return _parsed(body)


def _tail(body: bytes, at: int) -> dict[str, Any] | None:
    """Return the members of a JSON object from one of them on, None if that cannot be told.

    A brace in front of the rest makes an object of it that ends with the body only if the rest stands in the outermost
    object. A key cannot be the end of a text: its first quote would have to be escaped.
    """
    if body.endswith(b"\\", 0, at):
        return None
    text = "{" + body[at:].decode(errors="replace")
    try:
        members, end = scan(text, 0)
    except UNREADABLE:
        return None
    return members if end == len(text) or not text[end:].strip() else None


def _at_the_ends(body: bytes, first: int) -> dict[str, Any]:
    """Return what is found at the beginning and at the end of a long body, without a look at what is between."""
    found: dict[str, Any] = {}
    flat = _FLAT.match(body, 0, ENDS_BYTES)
    if flat is not None and flat.end() == first:
        word = next(word for word in WORDS if body.startswith(word, first))
        colon = _COLON.match(body, first + len(word))
        if colon is not None:
            text = body[colon.end() : colon.end() + ENDS_BYTES].decode(errors="replace")
            try:
                found[word[1:-1].decode()] = scan(text, 0)[0]
            except UNREADABLE:
                pass
            else:
                first += len(word)
    begin = max(first, len(body) - ENDS_BYTES)
    # The first may stand further in, in one of the elements of a list: then the last ones are what is looked for.
    places = {find(word, begin) for word in WORDS for find in (body.find, body.rfind)}
    for at in sorted(places - {-1}):
        tail = _tail(body, at)
        if tail is not None:
            return found | tail
    return found


def _parsed(body: bytes) -> object:
    """Return what a JSON text says, None if it is none."""
    text = body.removeprefix(BOM).decode(errors="replace").strip()
    try:
        value, end = scan(text, 0)
    except UNREADABLE:
        return None
    return value if end == len(text) else None


def _events_with_words(body: bytes) -> list[bytes]:
    """Return the events that hold one of the words, in order."""
    first = _first_word(body)
    if first < 0:
        return []
    body = body[body.rfind(b"\n\n", 0, first) + 1 :]  # an end of an event, whatever else is one
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    body = body.removeprefix(BOM)
    places: dict[int, int] = {}  # of events: from, to
    for word in WORDS:
        at = body.find(word)
        while at >= 0:
            behind = at + len(word)
            if body.startswith(b":null", behind):  # as some servers send with every token
                at = body.find(word, behind)
                continue
            start = body.rfind(b"\n\n", 0, at)
            end = body.find(b"\n\n", behind)
            end = len(body) if end < 0 else end
            places[0 if start < 0 else start + 2] = end
            at = body.find(word, end)
    return [body[start : places[start]] for start in sorted(places)]


def _objects(event: bytes) -> list[dict[str, Any]]:
    """Return the JSON objects of one event: one in each `data:` line, or one in all of them together."""
    lines = [line[5:].strip() for line in map(bytes.strip, event.split(b"\n")) if line.startswith(b"data:")]
    found = [
        value for line in lines if any(word in line for word in WORDS) and isinstance(value := _parsed(line), dict)
    ]
    if not found and len(lines) > 1:
        whole = _parsed(b"\n".join(lines))
        found = [whole] if isinstance(whole, dict) else []
    return found


# ---- reading the objects -------------------------------------------------------------------------------------------


def counts(usage: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    """Return the tokens in, out and cached that a `usage` object tells of: OpenAI's names, or Anthropic's."""
    get = usage.get
    prompt, output, cached = get("prompt_tokens"), get("completion_tokens"), get("cache_read_input_tokens")
    if prompt is None:
        prompt = get("input_tokens")
    if output is None:
        output = get("output_tokens")
    if cached is None:
        for details in (get("input_tokens_details"), get("prompt_tokens_details")):
            if isinstance(details, dict) and (cached := details.get("cached_tokens")) is not None:
                break
    return _count(prompt), _count(output), None if cached is None else _count(cached)


def _result(prompt: int, output: int, cached: int, timings: object, metrics: object) -> tuple[Tokens, float]:
    """Add to the counts what llama.cpp says of its work, which is more exact; then what vLLM says."""
    if timings is None and metrics is None:
        return Tokens(cached, -1, -1, prompt, output, -1.0, -1.0), 0.0
    drafts: tuple[int, int] | None = None
    prompt_speed = speed = -1.0
    took_ms = 0.0
    if isinstance(timings, dict):
        get = timings.get
        prompt = _or(_count(get("prompt_n")), prompt)
        output = _or(_count(get("predicted_n")), output)
        cached = _or(_count(get("cache_n")), cached)
        drafts = _both(get("draft_n"), get("draft_n_accepted"))
        prompt_speed, speed = _speed(get("prompt_per_second")), _speed(get("predicted_per_second"))
        took_ms = max(_speed(get("prompt_ms")), 0.0) + max(_speed(get("predicted_ms")), 0.0)
    if isinstance(metrics, dict):
        decoding = metrics.get("speculative_decoding")
        if isinstance(decoding, dict):
            found = _both(decoding.get("num_draft_tokens"), decoding.get("num_accepted_draft_tokens"))
            drafts = found or drafts
        first_ms, next_ms = _speed(metrics.get("time_to_first_token_ms")), _speed(metrics.get("mean_itl_ms"))
        if first_ms > 0:
            prompt_speed = _speed(1000 * max(prompt - max(cached, 0), 0) / first_ms)
        if next_ms > 0:
            speed = _speed(1000 / next_ms)
    drafted, accepted = drafts or (-1, -1)
    return Tokens(cached, drafted, accepted, prompt, output, prompt_speed, speed), took_ms


def _count(value: object) -> int | None:
    """Return a number of tokens, None for what is none; bounded."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if 0 <= value <= MOST_TOKENS else min(max(value, 0), MOST_TOKENS)
    if isinstance(value, float):
        return int(min(value, MOST_TOKENS)) if value > 0 else 0  # also of NaN
    return None


def _speed(value: object) -> float:
    """Return a speed or a time, -1.0 for what is none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return -1.0
    return float(value) if 0 <= value <= MOST_TOKENS else -1.0  # not of NaN


def _both(drafted: object, accepted: object) -> tuple[int, int] | None:
    first, second = _count(drafted), _count(accepted)
    return None if first is None or second is None else (first, second)


def _or(value: int | None, other: int) -> int:
    return other if value is None else value
