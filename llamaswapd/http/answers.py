"""What answers made by this program look like: JSON, text, redirects, the error envelope."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from urllib.parse import quote

from aiohttp import web

from llamaswapd.errors import Error, StartError, TooManyRequests, Unauthorized, envelope

# Everything that may stand in a redirect's target as it is. A backslash may not: browsers take it for a slash.
TARGET_SAFE = "/%:@!$&'()*+,;=~?-._[]"


def json_answer(value: object, headers: Mapping[str, str] | None = None, status: int = 200) -> web.Response:
    body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json", **(headers or {})})


def text_answer(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    head = {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}
    return web.Response(status=status, body=text.encode(errors="replace"), headers=head)


def redirect(status: int, target: str) -> web.Response:
    """Send the client to a path of ours, which may hold a query and whatever else the client wrote."""
    return web.Response(status=status, headers={"Location": quote(target, TARGET_SAFE, errors="surrogateescape")})


def error_answer(error: Error, accept: str) -> web.Response:
    """Return an error as the client wants to read it."""
    content_type, body = error_body(error, accept)
    headers = {"Content-Type": content_type}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Basic realm="llama-swap"'
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    elif isinstance(error, StartError):
        headers["X-Should-Retry"] = "false"  # else the clients of OpenAI and Anthropic start it twice more at once
    return web.Response(status=error.status, body=body, headers=headers)


def error_bytes(error: Error, accept: str, *, keep_alive: bool) -> tuple[bytes, int]:
    """Return the same as it goes over the wire, and the length of its body."""
    answer = error_answer(error, accept)
    assert isinstance(answer.body, bytes)
    lines = [
        f"HTTP/1.1 {answer.status} {answer.reason}",
        *(f"{name}: {value}" for name, value in answer.headers.items()),
    ]
    if not keep_alive:
        lines.append("Connection: close")
    head = "\r\n".join((*lines, f"Content-Length: {len(answer.body)}", "", "")).encode()
    return head + answer.body, len(answer.body)


def error_body(error: Error, accept: str) -> tuple[str, bytes]:
    """Return content type and body of an error for a request with this `Accept` header."""
    message = str(error)
    if isinstance(error, TooManyRequests):  # clients that back off read this one's code
        accept = ""
    if "text/plain" in accept:
        return "text/plain", f"llama-swap: {message}".encode(errors="replace")
    if "text/html" in accept:
        page = f"<html><body><h1>llama-swap</h1><p>{html.escape(message)}</p></body></html>"
        return "text/html", page.encode(errors="replace")
    return "application/json", json.dumps(envelope(error.status, message), separators=(",", ":")).encode()
