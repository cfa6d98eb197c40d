"""A model server for tests: starts at once and misbehaves on request.

usage: server.py PORT [OPTION...]         needs: the standard library, so `python -S -E` starts it fast

  --ready-after S      /health answers 503 until S seconds after the start; prints `ready` then
  --listen-after S     the port is opened S seconds after the start
  --ready-when FILE    /health answers 503 until this file exists
  --host ADDRESS       listens there, not on 127.0.0.1
  --deaf               SIGTERM is ignored
  --slow-stop S        SIGUSR1 ends it, S seconds later; SIGTERM ends it at once; either is printed
  --fork               leaves a child and a double-forked grandchild in a session of its own behind
  --notify             READY=1 to $NOTIFY_SOCKET when ready
  --hang-health        /health is accepted and never answered, not even when ready
  --hang-until-ready   so are those that come before it is ready
  --exit S:STATUS      ends by itself S seconds after the start
  --memory MIB         allocates this much when asked for /allocate

Answers: /health; POST anything: JSON that tells what was received, or as many server-sent events as `n` says, `gap`
seconds apart, when the body has `"stream": true`; with `"until": FILE` they go on until the file exists; `"die_after":
k` kills the process after k of them; GET /stats: how many streams are being served, were served, and were left by
their client; GET /stats?left=N: the same, once N were left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STARTED = time.monotonic()


class Stats:
    lock = threading.Condition()
    active = 0
    left = 0
    served = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    options: argparse.Namespace

    def do_GET(self) -> None:
        if self.path.endswith("/health"):
            return self.health()
        if self.path.startswith("/stats"):
            _, _, left = self.path.partition("?left=")
            with Stats.lock:
                Stats.lock.wait_for(lambda: Stats.left >= int(left or 0))
            return self.answer({"active": Stats.active, "left": Stats.left, "served": Stats.served})
        if self.path == "/allocate":
            hog = bytearray(self.options.memory << 20)
            hog[::4096] = b"x" * len(hog[::4096])
        return self.answer({"path": self.path, "headers": dict(self.headers), "pid": os.getpid()})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        print(f"received {self.path}", flush=True)
        try:
            question = json.loads(body)
        except ValueError:
            question = {}
        if not isinstance(question, dict) or not question.get("stream"):
            size = {"path": self.path, "size": len(body), "headers": dict(self.headers), "pid": os.getpid()}
            time.sleep(float(question.get("sleep", 0)) if isinstance(question, dict) else 0)
            return self.answer({**size, "body": body.decode(errors="replace")[:2000]})
        return self.stream(question)

    def health(self) -> None:
        waits_for = self.options.ready_when
        ready = time.monotonic() - STARTED >= self.options.ready_after and (not waits_for or os.path.exists(waits_for))
        if self.options.hang_health or (self.options.hang_until_ready and not ready):
            time.sleep(3600)
        self.answer({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    def stream(self, question: dict[str, object]) -> None:
        with Stats.lock:
            Stats.active += 1
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            until = str(question.get("until", ""))
            for number in itertools.count() if until else range(int(str(question.get("n", 3)))):
                if until and os.path.exists(until):
                    break
                if number == question.get("die_after"):
                    os.kill(os.getpid(), signal.SIGKILL)
                self.chunk(f'data: {{"choices":[{{"delta":{{"content":"{number} "}}}}]}}\n\n')
                time.sleep(float(str(question.get("gap", 0.01 if until else 0))))
            self.chunk("data: [DONE]\n\n")
            self.chunk("")
        except OSError:
            with Stats.lock:
                Stats.left += 1
            self.close_connection = True
        finally:
            with Stats.lock:
                Stats.active -= 1
                Stats.served += 1
                Stats.lock.notify_all()

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        if "/health" not in self.path:
            print(f"{self.command} {self.path}", flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that left is no news


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--ready-after", type=float, default=0.0)
    parser.add_argument("--listen-after", type=float, default=0.0)
    parser.add_argument("--ready-when", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--slow-stop", type=float)
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--notify", action="store_true")
    parser.add_argument("--hang-health", action="store_true")
    parser.add_argument("--hang-until-ready", action="store_true")
    parser.add_argument("--exit", default="")
    parser.add_argument("--memory", type=int, default=256)
    Handler.options = options = parser.parse_args()

    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.slow_stop is not None:
        signal.signal(signal.SIGTERM, lambda *_: end("SIGTERM"))
        signal.signal(signal.SIGUSR1, lambda *_: (print("SIGUSR1", flush=True), end("asked to end", options.slow_stop)))
    if options.fork:
        leave_children()
    if options.exit:
        after, _, status = options.exit.partition(":")
        end("giving up", float(after), int(status))
    time.sleep(options.listen_after)
    server = Server((options.host, options.port), Handler)
    print(f"listening on {options.port}", flush=True)
    threading.Timer(options.ready_after, ready, [options.notify]).start()
    server.serve_forever()


def end(last_words: str, after_s: float = 0.0, status: int = 0) -> None:
    threading.Timer(after_s, lambda: (print(last_words, file=sys.stderr, flush=True), os._exit(status))).start()


def ready(notify: bool) -> None:
    print("ready", flush=True)
    if notify:
        address = os.environ["NOTIFY_SOCKET"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.send(b"READY=1")


def leave_children() -> None:
    """A child that ignores SIGTERM, and a grandchild that has left session, process group and parent."""
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
        time.sleep(3600)


if __name__ == "__main__":
    main()
