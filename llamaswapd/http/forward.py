"""What of a client's request head a model's server gets to see."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from aiohttp import web

from llamaswapd.errors import RequestError
from llamaswapd.http.auth import presented_key

# RFC 9110 section 7.6.1, and what we say ourselves: the body's framing, and whom the request came through. A client
# that asked whether to go on (Expect) has been answered by us.
NOT_FORWARDED = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"content-length", b"expect", b"x-forwarded-for",
))  # fmt: skip

KEY_HEADERS = {b"authorization": "Authorization", b"x-api-key": "x-api-key"}


def target_of(request: web.BaseRequest) -> str:
    """Return path and query as the client wrote them, also when it wrote a whole URL (RFC 9112 section 3.2.2)."""
    return request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs


def request_head(
    request: web.BaseRequest, target: str, length: int | None, api_keys: tuple[str, ...], default_host: str
) -> bytes:
    """Return the head of the request to the model's server.

    `target`: path and query. `length`: bytes of the body, None for one sent in chunks. Headers that carry one of
    `api_keys` are left out: they are ours, not the model's.
    """
    fields = [(name.lower(), value, name + b": " + value) for name, value in request.raw_headers]
    kept, forwarded_for = forwarded(fields, _listed(request), api_keys)
    lines = [f"{request.method} {target} HTTP/1.1".encode(errors="surrogateescape"), *kept]
    if not any(name == b"host" for name, _, _ in fields):  # HTTP/1.0
        lines.append(b"Host: " + default_host.encode())
    if request.remote:
        forwarded_for.append(request.remote.encode())
    if forwarded_for:
        lines.append(b"X-Forwarded-For: " + b", ".join(forwarded_for))
    if "trailers" in request.headers.get("TE", "").lower():  # they are passed on
        lines.append(b"TE: trailers")
    if length is None:
        lines.append(b"Transfer-Encoding: chunked")
    elif length or request.method in ("POST", "PUT", "PATCH"):
        lines.append(b"Content-Length: %d" % length)
    lines.append(b"\r\n")
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise RequestError("a request header holds a line break")
    return head


def forwarded(
    fields: Iterable[tuple[bytes, bytes, bytes]], listed: frozenset[bytes], api_keys: tuple[str, ...]
) -> tuple[list[bytes], list[bytes]]:
    """Return the lines that are sent on, and the values of X-Forwarded-For.

    Of each field: its name in lower case, its value, its line. `listed` are the names that Connection lists.
    """
    lines, forwarded_for = [], []
    for name, value, line in fields:
        if name == b"x-forwarded-for":
            forwarded_for.append(value)
        if name in NOT_FORWARDED or name in listed:
            continue
        if api_keys and name in KEY_HEADERS and _carries_key(KEY_HEADERS[name], value, api_keys):
            continue
        lines.append(line)
    return lines, forwarded_for


def _listed(request: web.BaseRequest) -> frozenset[bytes]:
    """The headers that the client names in Connection: they concern its connection to us only; Host never does."""
    values = request.headers.getall("Connection", ())
    return _names(",".join(values).encode(errors="surrogateescape")) if values else frozenset()


@lru_cache(maxsize=64)
def _names(value: bytes) -> frozenset[bytes]:
    return frozenset(name.strip() for name in value.lower().split(b",")) - {b"host"}


def _carries_key(name: str, value: bytes, api_keys: tuple[str, ...]) -> bool:
    key = presented_key({name: value.decode(errors="surrogateescape")})
    return key.decode(errors="surrogateescape") in api_keys
