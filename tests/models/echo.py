"""A model server for tests that answers what the request asks for, or else tells what it received.

usage: echo.py PORT         needs: the standard library, so `python -S -E` starts it fast

A request says what it wants in the member `answer` of its JSON body, or as JSON in the header `X-Answer`:

  status, headers   200 and {"Content-Type": "application/json"} unless given
  body              text of the answer, or `body64`, the same in base64
  times             repeat the body so often; it goes out in one piece each, with their sum as Content-Length
  events            a list of texts, sent one by one in a chunked answer instead of a body
  until             after the body or the events, nothing more is sent until this file exists
  before            nothing at all is sent until this file exists
  raw64             these bytes, in base64, are the whole answer, head included; the connection is closed then
  die               the process is killed after what was sent

Without it: JSON with method, path, headers ([[name, value], …] as they came), body64 and pid. A websocket handshake is
accepted, and bytes are echoed from then on. What ends in /health answers 200.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "websocket" in self.headers.get("Upgrade", "").lower():
            return self.echo_bytes()
        if self.path.partition("?")[0].endswith("/health"):
            return self.send_whole({"body": "OK", "headers": {"Content-Type": "text/plain"}})
        wish = self.wish(body)
        return self.received(body) if wish is None else self.grant(wish)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

    def wish(self, body: bytes) -> Json | None:
        if header := self.headers.get("X-Answer"):
            return dict(json.loads(header))
        try:
            question = json.loads(body)
        except ValueError:
            return None
        return question.get("answer") if isinstance(question, dict) else None

    def received(self, body: bytes) -> None:
        told = {"method": self.command, "path": self.path, "headers": [*self.headers.items()], "pid": os.getpid()}
        self.send_whole({"body": json.dumps({**told, "body64": base64.b64encode(body).decode()})})

    def grant(self, wish: Json) -> None:
        wait_for(wish.get("before"))
        if "raw64" in wish:
            self.wfile.write(base64.b64decode(wish["raw64"]))
            self.close_connection = True
        elif "events" in wish:
            self.send_events(wish)
        else:
            self.send_whole(wish)
        if wish.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)

    def send_whole(self, wish: Json) -> None:
        body = base64.b64decode(wish["body64"]) if "body64" in wish else wish.get("body", "").encode()
        times = wish.get("times", 1)
        self.send_head(wish, {"Content-Length": str(len(body) * times)})
        if self.command != "HEAD":
            for _ in range(times):
                self.wfile.write(body)
        wait_for(wish.get("until"))

    def send_events(self, wish: Json) -> None:
        self.send_head(wish, {"Transfer-Encoding": "chunked"})
        for event in wish["events"]:
            self.send_chunk(event.encode())
        if wish.get("die"):
            return
        wait_for(wish.get("until"))
        self.send_chunk(b"")

    def send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_head(self, wish: Json, framing: dict[str, str]) -> None:
        self.send_response_only(wish.get("status", 200))
        for name, value in {"Content-Type": "application/json", **wish.get("headers", {}), **framing}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def echo_bytes(self) -> None:
        self.send_response_only(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        while data := self.connection.recv(65536):
            self.wfile.write(data)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that left is no news


def wait_for(file: str | None) -> None:
    while file and not os.path.exists(file):
        time.sleep(0.005)


if __name__ == "__main__":
    print("echo listens", flush=True)
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
