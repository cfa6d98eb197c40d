"""Which model a request means, from its method, path, query and the bytes of its body.

Nothing here reads: whoever owns the connection feeds the bytes as they come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from urllib.parse import quote, unquote, unquote_plus

from llamaswapd.config.schema import Config, ModelConfig, PeerModel
from llamaswapd.core import jsontext
from llamaswapd.core.jsontext import Scanner
from llamaswapd.core.multipart import MultipartScanner, parameter
from llamaswapd.core.naming import names_of
from llamaswapd.errors import ModelNotFound, NoModel

UNSCANNED_LIMIT = 256 * 1024  # bytes of JSON that are held behind the name in case somebody asks for `stream`
FORM_LIMIT_BYTES = 1024 * 1024  # a longer body is not looked through for an urlencoded field

NO_PINS: Mapping[str, str] = {}

# Every (method, path) that goes to the model which the request names.
MODEL_ROUTES = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/embeddings"),
    ("POST", "/rerank"),
    ("POST", "/reranking"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/reranking"),
    ("POST", "/infill"),
    ("POST", "/completion"),
    ("POST", "/v1/audio/speech"),
    ("POST", "/v1/audio/voices"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("POST", "/sdapi/v1/txt2img"),
    ("POST", "/sdapi/v1/img2img"),
    ("POST", "/audioapi/v1/tasks/run"),
    ("POST", "/v/chat/completions"),
    ("POST", "/v/responses"),
    ("POST", "/v/completions"),
    ("POST", "/v/messages"),
    ("POST", "/v/messages/count_tokens"),
    ("POST", "/v/embeddings"),
    ("POST", "/v/rerank"),
    ("POST", "/v/reranking"),
    ("GET", "/v1/audio/voices"),
    ("GET", "/sdapi/v1/loras"),
    ("GET", "/props"),
)


def forwarded_path(path: str) -> str:
    """Return the path that the model's server sees for one of the model routes."""
    for prefix in ("/v/", "/audioapi/"):
        if path.startswith(prefix):
            return path[len(prefix) - 1 :]
    return path


class ModelReader:
    """Finds the name of the model while the body of a request arrives.

    `name` and `stream` are what is known so far, `done` that nothing more can be learned: a caller may stop feeding at
    either, and asks `finish` for the name.
    """

    name: str | None = None
    done = False
    missing = ""  # why there is no name, if there is none

    @property
    def stream(self) -> bool:
        """Whether the client wants a stream, as far as that is known."""
        return False

    def feed(self, piece: bytes) -> None:
        """Take the next bytes of the body, in pieces of any size."""

    def finish(self) -> str:
        """Return the name, when the body has ended or no more of it is needed; raises NoModel."""
        if not self.name:
            raise NoModel(self.missing)
        if len(self.name) > jsontext.TEXT_LIMIT_BYTES:
            raise NoModel("the name is too long")
        return self.name


def reader(method: str, content_type: str, query: str) -> ModelReader:
    """Return what finds the name in such a request; `query` as it stands after the question mark."""
    if method in ("GET", "HEAD"):
        return QueryReader(query)
    kind = content_type.lower()
    if "application/json" in kind:
        return JsonReader()
    if "multipart/form-data" in kind:
        return MultipartReader(parameter(content_type, "boundary") or "", query)
    return UrlencodedReader(content_type, query)


class QueryReader(ModelReader):
    done = True
    missing = "the query has no model"

    def __init__(self, query: str) -> None:
        self.name = urlencoded_field(query, "model")
        self._stream = urlencoded_field(query, "stream") == "true"

    @property
    def stream(self) -> bool:
        return self._stream


class JsonReader(ModelReader):
    missing = "the JSON body has no model"

    def __init__(self) -> None:
        self._scanner = Scanner()
        self._unscanned: list[bytes] = []  # of the beginning; only a client that waits is asked for `stream`
        self._unscanned_bytes = 0
        self._pieces = 0
        self._first = b""

    def feed(self, piece: bytes) -> None:
        self._pieces += 1
        if self._pieces == 1:
            self._first = piece
            self.name = jsontext.first_model(piece)
        if self.name is not None:
            self._unscanned.append(piece)
            self._unscanned_bytes += len(piece)
            if self._unscanned_bytes > UNSCANNED_LIMIT:
                self._scan()
            return
        self._scanner.feed(piece)
        self.name, self.done = self._scanner.model, self._scanner.done

    @property
    def stream(self) -> bool:
        self._scan()
        return self._scanner.stream

    def _scan(self) -> None:
        unscanned, self._unscanned, self._unscanned_bytes = self._unscanned, [], 0
        for piece in unscanned:
            self._scanner.feed(piece)

    def finish(self) -> str:
        if self.name is None and self._pieces == 1:  # as any body does that somebody wrote by hand
            self.missing = _wrong_with(self._first) or self.missing
        return super().finish()


def _wrong_with(text: bytes) -> str:
    """Say why a text is no JSON object, "" if it is one."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return f"the body is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
    except (ValueError, RecursionError):  # not UTF-8; nested too deeply
        return "the body is not valid JSON"
    return "" if isinstance(value, dict) else "the JSON body is no object"


class MultipartReader(ModelReader):
    missing = "neither the form nor the query has a model"
    span: tuple[int, int] | None = None  # where the name stands in the body, in bytes; None when it came from the query

    def __init__(self, boundary: str, query: str) -> None:
        self._scanner = MultipartScanner(boundary)
        self._query = query
        if not boundary:
            self.done = True
            self.missing = "the Content-Type of the form has no boundary"

    def feed(self, piece: bytes) -> None:
        if self.done:
            return
        self._scanner.feed(piece)
        self.name, self.span, self.done = self._scanner.value, self._scanner.span, self._scanner.done

    def finish(self) -> str:
        if self.name is None:
            self.name = urlencoded_field(self._query, "model")
        return super().finish()


class UrlencodedReader(ModelReader):
    span: tuple[int, int] | None = None  # where the name stands in the body, in bytes; None when it came from the query

    def __init__(self, content_type: str, query: str) -> None:
        self._body = bytearray()
        self._query = query
        self.missing = (
            f'neither the query nor the body has it, which is read as a form by its Content-Type "{content_type}"; '
            "JSON needs application/json"
        )

    def feed(self, piece: bytes) -> None:
        if self.done:
            return
        self._body += piece
        if len(self._body) > FORM_LIMIT_BYTES:
            self._body.clear()
            self.done = True

    def finish(self) -> str:
        match = _field_pattern("model").search(self._body.decode("latin-1"))  # one character for each byte
        if match is None:
            self.name = urlencoded_field(self._query, "model")
        else:
            self.span = match.span(1)
            value = (match[1] or "").encode("latin-1")
            self.name = unquote_plus(value.decode("utf-8", "replace"), errors="replace")
        return super().finish()


def urlencoded_field(text: str, name: str) -> str | None:
    """Return the first value of a field, "" when it has none, None when there is no such field."""
    match = _field_pattern(name).search(text)
    return match and unquote_plus(match[1] or "", errors="replace")


def with_model(query: str, name: str) -> str:
    """Return the query with another name in its first field `model`; all else stays as it is."""
    return _field_pattern("model").sub(f"model={urlencoded(name)}", query, count=1)


def urlencoded(name: str) -> str:
    """Return a name as it stands in a query or a form."""
    return quote(name, safe="/:")


@cache
def _field_pattern(name: str) -> re.Pattern[str]:
    letters = "".join(f"(?:{letter}|%{ord(letter):02x}|%{ord(letter):02X})" for letter in name)
    return re.compile(rf"(?<![^&]){letters}(?:=([^&]*))?(?![^&])")


def split_upstream(
    config: Config, raw_path: str, pins: Mapping[str, str] = NO_PINS
) -> tuple[ModelConfig | PeerModel, str | None]:
    """Split `/upstream/<model>/<path>` into model and `/<path>`, None in place of the path when it ends at the model.

    The model is the longest run of segments that, percent-decoded, a pin renames; else the longest that is an id or
    alias, or a peer's model. The path keeps its escapes. Raises ModelNotFound.
    """
    segments = raw_path.removeprefix("/upstream/").split("/")
    longest = 1 + max((name.count("/") for name in (*pins, *_all_names(config))), default=0)
    runs = [(count, unquote("/".join(segments[:count]))) for count in range(min(longest, len(segments)), 0, -1)]
    found = next(((count, pins[name]) for count, name in runs if name in pins), None)
    for count, name in runs if found is None else [found]:
        target = config.find(name)
        if target is not None:
            rest = segments[count:]
            return target, "/" + "/".join(rest) if rest else None
    raise ModelNotFound


def _all_names(config: Config) -> Iterator[str]:
    yield from names_of(config.models.values())
    for peer_model in config.peer_models:
        yield from (peer_model.id, peer_model.model)
