"""Random requests, from good ones to what is hardly HTTP, made from a seed."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from typing import Any

MODELS = ("a", "b", "c", "alias", "by/id", "broken", "any", "spill", "pinned", "far", "peer/far", "nobody", "", "A")
WEIGHTS = (30, 20, 2, 5, 3, 1, 3, 3, 3, 2, 2, 5, 1, 1)

MODEL_ROUTES = """
/v1/chat/completions /v1/responses /v1/completions /v1/messages /v1/messages/count_tokens /v1/embeddings /rerank
/reranking /v1/rerank /v1/reranking /infill /completion /v1/audio/speech /v1/audio/voices /v1/images/generations
/sdapi/v1/txt2img /sdapi/v1/img2img /v1/audio/transcriptions /v1/images/edits /audioapi/v1/tasks/run
/v/chat/completions /v/responses /v/completions /v/messages /v/embeddings /v/rerank /sdapi/v1/loras /props
""".split()  # noqa: SIM905
OTHER_ROUTES = """
/ /health /wol-health /favicon.ico /v1/models /models /running /unload /api/models/unload /api/models/unload/a
/api/models/unload/nobody /upstream /upstream/a /upstream/a/ /upstream/a/v1/chat/completions /upstream/by%2Fid/x
/upstream/by/id/x /upstream/nobody/x /upstream/a/x.png /upstream/c/x.png /comfyui /comfyui/ /comfyui/x /api/profiles
/api/profiles/active /api/inflight/1/cancel /api/inflight/x/cancel /api/metrics/activity /api/metrics/stats
/api/metrics /api/captures/1 /api/captures/x /api/events /logs /logs/stream /logs/stream/a /logs/stream/upstream
/logs/stream/x /api/version /api/hardware /api/performance /metrics /ui /ui/ /ui/x /nothing
""".split()  # noqa: SIM905
# With their weights: in requests of good form, and in others.
METHODS = {
    "POST": (40, 40), "GET": (15, 15), "HEAD": (2, 3), "OPTIONS": (2, 3), "PUT": (3, 4), "DELETE": (1, 2),
    "PATCH": (1, 1), "TRACE": (0, 1), "CONNECT": (0, 1), "PURGE": (0, 1), "get": (0, 1), "P\xd6ST": (0, 1), "": (0, 1),
}  # fmt: skip
VERSIONS = ("HTTP/1.0", "HTTP/2.0", "HTTP/1.", "", "x")
ODD_IN_PATHS = (
    "/", "//", "/../", "/./", "%2F", "%2e%2e", "%", "%00", "%zz", "\x00", "\xff", " ", "?", "#", "\\", "x" * 9000,
    "%ff", ";", "*", "http://x/", "/" * 500,
)  # fmt: skip
ODD_CHUNKS = (b"", b"zz\r\n", b"-1\r\nx\r\n", b"fffffffffffffffff\r\n", b"5;x=\xff\r\nab\r\n", b"1\r\nxx\r\n")
ODD_JSON = (
    b"[" * 3000, b'{"a":' * 3000, b'"', b"null", b"[]", b'{"model":{"model":"a"}}', b'{"model":1e999}',
    b'{"model":"\\ud800"}', b'{"model":"\xff"}', b'{"model":["a"]}', b'{"model":null}', b'{"model":"a"}{"model":"b"}',
    b"{'model':'a'}", b'{"model":"a",}',
)  # fmt: skip
TYPES = (
    "application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", "", "application/xml",
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=X", "multipart/form-data", "a/b;c=\xe9",
    'multipart/form-data; boundary="a b"', "application/json, text/html",
)  # fmt: skip
QUERIES = (
    "", "?", "?model=a", "?model=b&stream=true", "?model=%zz", "?model=%00", "?model=a%2Fb&model=b", "?x=" + "y" * 5000,
    "?limit=x&page=0", "?limit=9&sort=nope", "?start=now", "?id=%ff%fe", "?no-history", "?after=2020", "?=&&=&model",
    "?model=\xe9", "??a#b", "?min_id=9223372036854775808&max_id=-1", "?limit=1e9",
)  # fmt: skip
HEADERS = (
    "Accept: text/html", "Accept: text/plain", "Accept-Encoding: gzip, br;q=0", "Accept-Encoding: \xff",
    "Authorization: Bearer x", "Authorization: Basic !!!", "Authorization:", "X-Api-Key: k", "Cookie: a=b; c",
    "Connection: close", "Connection: keep-alive, X-Foo", "Connection: Upgrade", "Upgrade: websocket", "Upgrade: h2c",
    "Expect: 100-continue", "Expect: nonsense", "TE: trailers", "Trailer: X", "Origin: http://x", "Range: bytes=0-1",
    "X-Forwarded-For: 1.2.3.4, x", "X-Forwarded-For: \xff", "X-Real-IP: ::1", "Content-Encoding: gzip",
    "If-None-Match: *", "Keep-Alive: timeout=5", "Proxy-Authorization: Basic eA==", "X-Session-ID: s",
    "Access-Control-Request-Headers: a, b(, \xe9, c", "Content-Length: 0", "Content-Length: -1", "Content-Length: 1e3",
    "Content-Length: 99999999999999999999", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked, identity",
    "Host: other", "X: \x00", "X: \x07", "X : y", " folded: x", "no colon", ":", "\xe9: x", "X: " + "y" * 9000,
    "X: " + "z" * 70000, "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13",
)  # fmt: skip
HONEST_HEADERS = HEADERS[:12]


@dataclass
class Request:
    """Bytes to send. If it is `complete`, an answer must come although nothing more is sent, unless its client left."""

    data: bytes
    complete: bool
    is_left: bool = False  # its client leaves as soon as it has sent it


def random_request(dice: random.Random) -> Request:
    """Return a request: half of them good in form, the others with whatever is wrong."""
    is_honest = dice.random() < 0.5
    request = _request(dice, is_honest=is_honest)
    request.is_left = dice.random() < 0.1
    if is_honest:
        if dice.random() < 0.05:
            request.data += _request(dice, is_honest=True).data
        return request
    match dice.randrange(6):
        case 0:  # cut
            request.data = request.data[: dice.randrange(1, len(request.data) + 1)]
        case 1:  # some bytes are others
            data = bytearray(request.data)
            for _ in range(dice.randrange(1, 6)):
                data[dice.randrange(min(len(data), 400))] = dice.randrange(256)
            request.data = bytes(data)
        case 2:  # bare line feeds
            request.data = request.data.replace(b"\r\n", b"\n", dice.randrange(1, 9))
        case 3:
            request.data = dice.randbytes(dice.randrange(1, 300)) + b"\r\n\r\n"
    return request


def _request(dice: random.Random, *, is_honest: bool) -> Request:
    content_type = dice.choice(TYPES[:2] if dice.random() < 0.6 else TYPES)
    path = _path(dice, is_honest=is_honest)
    method = dice.choices([*METHODS], [weights[not is_honest] for weights in METHODS.values()])[0]
    if path in MODEL_ROUTES and dice.random() < 0.8:
        method = "POST"
    target = path + (dice.choice(QUERIES) if dice.random() < 0.3 else "")
    if is_honest:
        target = target.encode("ascii", "ignore").decode()
    version = "HTTP/1.1" if is_honest or dice.random() < 0.8 else dice.choice(VERSIONS)
    lines = [f"{method} {target} {version}", "Host: x"]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    extra = HONEST_HEADERS[:9] if is_honest else HEADERS
    lines += [dice.choice(extra) for _ in range(dice.choice((0, 0, 1, 2, 3)))]
    if not is_honest and dice.random() < 0.02:
        lines += [f"X-{number}: y" for number in range(dice.choice((50, 500)))]
    body = _body(dice, content_type)
    if dice.random() < 0.7:
        length = len(body) if is_honest or dice.random() < 0.8 else dice.choice((0, 1, len(body) + 9, 10**12, -5))
        lines.append(f"Content-Length: {length}")
    elif dice.random() < 0.6:
        lines.append("Transfer-Encoding: chunked")
        body = _chunked(dice, body, is_honest=is_honest)
    else:
        body = b"" if is_honest else body
    return Request("\r\n".join([*lines, "", ""]).encode("latin-1") + body, is_honest)


def _path(dice: random.Random, *, is_honest: bool) -> str:
    path = dice.choice(MODEL_ROUTES if dice.random() < 0.6 else OTHER_ROUTES)
    if path.startswith("/unload") and dice.random() < 0.8:
        path = "/health"  # once in a while is enough
    if is_honest or dice.random() < 0.7:
        return path
    place = dice.randrange(len(path) + 1)
    return path[:place] + dice.choice(ODD_IN_PATHS) + path[place:]


def _chunked(dice: random.Random, body: bytes, *, is_honest: bool) -> bytes:
    pieces = []
    while body:
        size = dice.randrange(1, len(body) + 1)
        pieces.append(b"%x\r\n%b\r\n" % (size, body[:size]))
        body = body[size:]
    if not is_honest:
        pieces.insert(dice.randrange(len(pieces) + 1), dice.choice(ODD_CHUNKS))
    return b"".join(pieces) + b"0\r\n" + dice.choice((b"", b"", b"X: y\r\n")) + b"\r\n"


def _body(dice: random.Random, content_type: str) -> bytes:
    model = dice.choices(MODELS, WEIGHTS)[0]
    if "form-data" in content_type:
        return _multipart(dice, model)
    if "urlencoded" in content_type:
        return dice.choice((f"model={model}&x=y", "model=%zz&model=b", "model", "=", "a=b" * 1000, "%00=%ff")).encode()
    fields: dict[str, Any] = {"model": model}
    for _ in range(dice.randrange(4)):
        fields[dice.choice(("stream", "messages", "n", "x.y", "é", "tools", "temperature", "strip"))] = _value(dice, 3)
    if dice.random() < 0.005:
        fields["die"] = True
    if dice.random() < 0.1:
        fields["name"] = dice.choice(("p", "none", None, 7))
    if dice.random() < 0.02:
        fields["text"] = "x" * dice.choice((70_000, 1_000_000))
    items = list(fields.items())
    dice.shuffle(items)
    text = json.dumps(dict(items), ensure_ascii=dice.random() < 0.5)
    match dice.randrange(16):
        case 0:
            return text.encode()[: dice.randrange(len(text) + 1)]
        case 1:
            return b"\xef\xbb\xbf" + text.encode()
        case 2:
            return text.encode("utf-16")
        case 3:
            return ('{"model":"b",' + text[1:]).encode()
        case 4:
            return dice.choice(ODD_JSON)
        case 5:
            return gzip.compress(text.encode())
    return text.encode()


def _value(dice: random.Random, depth: int) -> Any:
    match dice.randrange(9 if depth else 6):
        case 0:
            return dice.choice((True, False, None, "true"))
        case 1:
            return dice.choice((0, -1, 1.5, 10**30, 1e-300))
        case 2 | 3:
            return dice.choice(("", "text", "\x00", "\ud7ff\U0001f642", '"\\', "a" * 300, "</script>"))
        case 4:
            return []
        case 5:
            return {}
        case 6:
            return [_value(dice, depth - 1) for _ in range(dice.randrange(4))]
        case _:
            return {dice.choice("abcé."): _value(dice, depth - 1) for _ in range(dice.randrange(4))}


def _multipart(dice: random.Random, model: str) -> bytes:
    boundary = dice.choice(("X", "X", "X", "Y", "a b", ""))
    name = dice.choice(("model", "model", "model", "modelx", 'mo"del', "\xe9"))
    parts = [
        f'Content-Disposition: form-data; name="{name}"\r\n\r\n{model}',
        'Content-Disposition: form-data; name="file"; filename="f"\r\nContent-Type: audio/wav\r\n\r\n\x00\xff--X',
        "\r\n",
        "nonsense",
    ]
    dice.shuffle(parts)
    text = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts[: dice.randrange(5)]) + f"--{boundary}--\r\n"
    data = text.encode("latin-1")
    return data if dice.random() < 0.8 else data[: dice.randrange(len(data) + 1)]
