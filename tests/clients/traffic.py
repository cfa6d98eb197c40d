"""The daemon as its clients have it, and a look at what it has noted of each of their requests."""

from __future__ import annotations

import base64
import json
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import daemon_support
from daemon_support import Json

KEY = "sk-of-the-clients"
BEARER = {"Authorization": f"Bearer {KEY}"}
WAIT_S = 20.0


@dataclass(frozen=True)
class Service:
    """The daemon as an address and a key. `folder` is for files of its clients."""

    daemon: daemon_support.Daemon
    folder: Path

    @property
    def url(self) -> str:
        return self.daemon.url

    def openai(self, **changes: Any) -> Json:
        """Return what OpenAI's clients are made with; `changes` override."""
        return {"base_url": f"{self.url}/v1", "api_key": KEY, "max_retries": 0, **changes}

    def anthropic(self, **changes: Any) -> Json:
        return self.openai(**{"base_url": self.url, **changes})

    def ask(self, path: str, body: object = None) -> Any:
        """Return what JSON answers a GET, or a POST if there is a body."""
        with self._open(path, body) as answer:
            return json.loads(answer.read())

    def stream(self, path: str, body: object) -> list[Json]:
        """Return the events that answer a POST."""
        with self._open(path, body) as answer:
            return [json.loads(line[6:]) for line in answer if line.startswith(b"data: {")]

    def _open(self, path: str, body: object) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {**BEARER, "Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=WAIT_S)

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.url.partition("://")[2], timeout=WAIT_S)

    def stats(self, model: str, **condition: int) -> dict[str, int]:
        """Return what a scripted model counts: waiting answers, clients that left; when the condition holds."""
        return dict(self.ask(f"/upstream/{model}/stats?{urllib.parse.urlencode(condition)}"))


class Rows:
    """The rows of the activity in their order, each as soon as it is there."""

    def __init__(self, service: Service, events: HTTPResponse) -> None:
        self._service = service
        self._events = events
        while '"uiConfig"' not in self._line():  # told before whatever happens from now on
            pass
        newest = service.ask("/api/metrics/activity?limit=1")["data"]
        self._last = newest[0]["id"] if newest else 0

    def next(self) -> Json:
        """Wait for the next row."""
        while (number := self._number()) <= self._last:  # of an earlier test; told late, many at a time
            pass
        self._last = number
        (row,) = self._service.ask(f"/api/metrics/activity?min_id={number}&max_id={number}")["data"]
        return dict(row)

    def capture(self, row: Json) -> tuple[bytes, bytes]:
        """Return the request and the answer of a row, as they are kept."""
        kept = self._service.ask(f"/api/captures/{row['id']}")
        return base64.b64decode(kept["req_body"] or ""), base64.b64decode(kept["resp_body"] or "")

    def _number(self) -> int:
        """Return the number of the next row that is told."""
        while True:
            line = self._line()
            if line.startswith("data:") and (event := json.loads(line[5:]))["type"] == "activity":
                return int(json.loads(event["data"])["id"])

    def _line(self) -> str:
        line = self._events.readline().decode()
        assert line, "the event stream ended"
        return line


def counts(row: Json) -> tuple[int, int]:
    """Return how many tokens went in and out, as a row says."""
    return row["tokens"]["input_tokens"], row["tokens"]["output_tokens"]


def counts_of_llama_cpp(row: Json) -> tuple[int, int]:
    """Return the same where `timings` has been read, which tells of a prompt only what was not cached."""
    read, said = counts(row)
    return read + row["tokens"]["cache_tokens"], said
