"""What of a client's request head a model's server gets to see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from aiohttp import web

from llamaswapd.config.schema import Peer
from llamaswapd.errors import RequestError
from llamaswapd.http.auth import presented_key

# RFC 9110 section 7.6.1, and what we say ourselves: the body's framing, and whom the request came through. A client
# that asked whether to go on (Expect) has been answered by us.
NOT_FORWARDED = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", b"content-length", b"expect", b"x-forwarded-for",
))  # fmt: skip

KEY_HEADERS = {b"authorization": "Authorization", b"x-api-key": "x-api-key"}

READABLE_CODINGS = frozenset((b"gzip", b"deflate"))  # of answers in which usage can be found


def target_of(request: web.BaseRequest) -> str:
    """Return path and query as the client wrote them, also when it wrote a whole URL (RFC 9112 section 3.2.2)."""
    return request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs


def request_head(
    request: web.BaseRequest,
    target: str,
    length: int | None,
    *,
    host: str,
    client: str,
    api_keys: tuple[str, ...] = (),
    peer: Peer | None = None,
    is_recorded: bool = False,
    is_plain: bool = False,
    upgrade: str = "",
    authorization: str = "",
) -> bytes:
    """Return the head of the request to a model's server, or to a peer.

    `target`: path and query. `length`: bytes of the body, None for one sent in chunks. `host`: the server's, told to a
    peer, and where the client tells none. `client`: the client's address, "" if it has none. Headers that carry one of
    `api_keys` are left out: they are ours, not the model's. `is_recorded`: its answer must be readable for us.
    `is_plain`: it must not be compressed. `upgrade`: the protocol that the client wants to go on in. `authorization`:
    for the proxy on the way to the server.
    """
    fields = [(name.lower(), value, name + b": " + value) for name, value in request.raw_headers]
    hosts = sum(name == b"host" for name, _, _ in fields)
    if hosts > 1:  # RFC 9112 section 3.2; aiohttp 3.8 lets it pass
        raise RequestError("the request has more than one Host header")
    if peer is not None:
        fields = list(_to_peer(fields, peer))
    if is_plain:
        fields = [field for field in fields if field[0] != b"accept-encoding"]
    kept, forwarded_for = forwarded(fields, _listed(request), api_keys, is_recorded=is_recorded)
    lines = [f"{request.method} {target} HTTP/1.1".encode(errors="surrogateescape")]
    if peer is not None or not hosts:  # HTTP/1.0 may have none
        lines.append(b"Host: " + host.encode())
    lines += kept
    if peer is not None and peer.api_key:
        key = peer.api_key.encode(errors="surrogateescape")
        lines += (b"Authorization: Bearer " + key, b"x-api-key: " + key)
    if peer is None and (line := forwarded_for_line(forwarded_for, client)):
        lines.append(line)
    if authorization:
        lines.append(b"Proxy-Authorization: " + authorization.encode())
    if "trailers" in request.headers.get("TE", "").lower():  # they are passed on
        lines.append(b"TE: trailers")
    if upgrade:
        lines += (b"Connection: Upgrade", b"Upgrade: " + upgrade.encode(errors="surrogateescape"))
    if length is None:
        lines.append(b"Transfer-Encoding: chunked")
    elif length or request.method in ("POST", "PUT", "PATCH"):
        lines.append(b"Content-Length: %d" % length)
    lines.append(b"\r\n")
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise RequestError("a request header holds a line break")
    return head


Field = tuple[bytes, bytes, bytes]  # the name in lower case, the value, the line


def _to_peer(fields: Iterable[Field], peer: Peer) -> Iterator[Field]:
    """Yield what another server may know: neither our host nor who asked us, and its own key if it has one."""
    for field in fields:
        name = field[0]
        if name in (b"host", b"forwarded") or name.startswith(b"x-forwarded-"):
            continue
        if not (peer.api_key and name in KEY_HEADERS):
            yield field


def forwarded(
    fields: Iterable[Field], listed: frozenset[bytes], api_keys: tuple[str, ...], *, is_recorded: bool
) -> tuple[list[bytes], list[bytes]]:
    """Return the lines that are sent on, and the values of X-Forwarded-For.

    `listed` are the names that Connection lists. Of a recorded request, the answer may be compressed only so that we
    can read it.
    """
    lines, forwarded_for = [], []
    for name, value, line in fields:
        if name == b"x-forwarded-for":
            forwarded_for.append(value)
        if name in NOT_FORWARDED or name in listed:
            continue
        if api_keys and name in KEY_HEADERS and _carries_key(KEY_HEADERS[name], value, api_keys):
            continue
        if is_recorded and name == b"accept-encoding" and (readable := _readable(value)) != value:
            lines += [line[: line.index(b":")] + b": " + readable] if readable else []
            continue
        lines.append(line)
    return lines, forwarded_for


def forwarded_for_line(prior: Iterable[bytes], client: str) -> bytes:
    """Return the line that says for whom a request is sent on, b"" if nothing is known of that."""
    addresses = b", ".join((*prior, client.encode()) if client else prior)
    return b"X-Forwarded-For: " + addresses if addresses else b""


@lru_cache(maxsize=64)
def _readable(accept_encoding: bytes) -> bytes:
    """Return those of the accepted codings that we can read too."""
    entries = [entry.strip() for entry in accept_encoding.split(b",")]
    readable = [entry for entry in entries if entry.partition(b";")[0].strip().lower() in READABLE_CODINGS]
    return accept_encoding if len(readable) == len(entries) else b", ".join(readable)


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
