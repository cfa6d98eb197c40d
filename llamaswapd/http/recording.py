"""Hands what the relays know of a request to the activity, once its answer has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from llamaswapd.activity.record import REQUESTS_NOT_KEPT, Finished, Pairs
from llamaswapd.config.schema import Config, ModelConfig, PeerModel
from llamaswapd.errors import Error
from llamaswapd.http.answers import error_body
from llamaswapd.http.kept import Budget, KeptRequest
from llamaswapd.http.relay import Relay

MIB = 1024 * 1024


class Activity(Protocol):
    """Whoever makes rows of what has ended."""

    def add(self, finished: Finished) -> None: ...


class Recorder:
    """Begins and ends the record of each request. `capture_mib`: how much of a request and its answer is kept."""

    def __init__(self, activity: Activity, capture_mib: int) -> None:
        self._activity = activity
        self.budget = Budget(max(capture_mib, 0) * MIB)

    def allow(self, capture_mib: int) -> None:
        """Set how much of a request and its answer is kept, from the next one on."""
        self.budget.allow(max(capture_mib, 0) * MIB)

    def begin(self, relay: Relay) -> None:
        """Keep what goes by."""
        relay.budget = self.budget
        if self.budget.limit and relay.sent_path not in REQUESTS_NOT_KEPT:
            relay.request_kept = KeptRequest(self.budget)

    def end(self, relay: Relay, status: int, error: Error | None = None) -> None:
        """The answer has ended, or its client has left. `error`: what the client was told in place of an answer."""
        # For every request: what is looked up twice elsewhere is looked up once here.
        finished = Finished()
        finished.model_id = relay.model_id
        finished.method = relay.method
        finished.path = relay.sent_path
        finished.status = status
        finished.ended_ns = time.time_ns()
        finished.ended = time.monotonic()
        finished.began = began = relay.began
        finished.first_byte = relay.first_byte
        finished.metadata = relay.about
        lease = relay.lease
        if lease is not None:
            finished.granted = (lease.granted_at or began) if lease.is_granted else 0.0
            finished.load_began = lease.load_began
        else:  # nobody waits for a peer
            finished.granted = began if relay.to_peer else 0.0
            finished.load_began = 0.0
        answer, failure = relay.answer, error or relay.failure
        if answer is not None:
            shape, digits = answer
            finished.content_type, finished.content_encoding = shape.content_type, shape.content_encoding
            finished.response_headers = partial(shape.pairs, digits)
        else:
            finished.content_type = _type_of(relay, failure)
            finished.content_encoding = ""
            finished.response_headers = _no_headers
        if relay.has_own_stream:
            finished.content_type, finished.content_encoding = "text/event-stream", ""
        finished.error = str(failure) if failure is not None else ""
        finished.heads_bytes = relay.heads_bytes
        finished.request_headers = relay.request_pairs()
        finished.request = relay.request_body()
        kept = relay.answer_kept
        if kept is None:
            finished.response, finished.is_cut = (relay.whole_answer,) if relay.whole_answer else (), False
            finished.is_chunked = False
            finished.answer_bytes = len(relay.whole_answer)
        else:
            kept.release()
            finished.response, finished.is_cut = (bytes(kept.body),), kept.is_cut
            finished.is_chunked = relay.is_in_chunks
            finished.answer_bytes = len(kept.body)
        if relay.request_kept is not None:
            relay.request_kept.release()
        relay.answer_kept = relay.request_kept = relay.budget = None
        self._activity.add(finished)

    @staticmethod
    def forget(relay: Relay) -> None:
        """The request is somebody else's: what was kept of it is given up."""
        for kept in (relay.answer_kept, relay.request_kept):
            if kept is not None:
                kept.release()
        relay.answer_kept = relay.request_kept = relay.budget = None


def about_request(config: Config, target: ModelConfig | PeerModel, selector: str | None = None) -> Mapping[str, str]:
    """Return what is said of a request beside what everybody sees of it."""
    about = {"fifo_priority": str(config.priority.get(target.id, 0))} if isinstance(target, ModelConfig) else {}
    return about | ({"selector": selector} if selector else {})


def _type_of(relay: Relay, error: Error | None) -> str:
    """Return the type of an answer of our own, "" if there was none."""
    return error_body(error, relay.headers.get("Accept", ""))[0] if error is not None else ""


def _no_headers() -> Pairs:
    return ()
