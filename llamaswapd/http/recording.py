"""Hands what the relays know of a request to the activity, once its answer has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from llamaswapd.activity.record import Finished, Pairs
from llamaswapd.config.schema import Config, ModelConfig, PeerModel
from llamaswapd.errors import Error
from llamaswapd.http.answers import error_body
from llamaswapd.http.kept import Budget, Kept
from llamaswapd.http.relay import Relay

# Requests that carry files: their bodies are no use to whoever looks for what was asked (llama-swap).
UNKEPT_REQUESTS = frozenset(
    ("/v1/audio/transcriptions", "/v1/images/edits", "/sdapi/v1/img2img", "/v1/audio/voices"),
)


MIB = 1024 * 1024


class Activity(Protocol):
    """Whoever makes rows of what has ended."""

    def add(self, finished: Finished) -> None: ...


class Recorder:
    """Begins and ends the record of each request. `capture_mib`: how much of a request and its answer is kept."""

    def __init__(self, activity: Activity, capture_mib: int) -> None:
        self._activity = activity
        self._budget = Budget(max(capture_mib, 0) * MIB)

    def allow(self, capture_mib: int) -> None:
        """Set how much of a request and its answer is kept, from the next one on."""
        self._budget.allow(max(capture_mib, 0) * MIB)

    def begin(self, relay: Relay) -> None:
        """Keep what goes by."""
        relay.answer_kept = Kept(self._budget, ends=True)
        if self._budget.limit and relay.sent_path not in UNKEPT_REQUESTS:
            relay.request_kept = Kept(self._budget, ends=False)

    def end(self, relay: Relay, status: int, error: Error | None = None) -> None:
        """The answer has ended, or its client has left. `error`: what the client was told in place of an answer."""
        finished = Finished()
        finished.model_id = relay.model_id
        finished.method = relay.method
        finished.path = relay.sent_path
        finished.status = status
        finished.ended_ns = time.time_ns()
        finished.began = relay.began
        finished.ended = time.monotonic()
        finished.first_byte = relay.first_byte
        finished.metadata = relay.about
        finished.heads_bytes = relay.heads_bytes
        finished.request_headers = relay.headers.items
        finished.is_chunked = relay.is_in_chunks
        finished.granted, finished.load_began = _waited(relay)
        error = error or relay.failure
        finished.error = str(error) if error is not None else ""
        finished.content_type, finished.content_encoding = _content(relay, error)
        finished.response_headers = _no_headers
        if relay.answer is not None:
            shape, digits = relay.answer
            finished.response_headers = partial(shape.pairs, digits)
        answer, request = relay.answer_kept, relay.request_kept
        finished.response, finished.is_cut = (), False
        if answer is not None:
            answer.release()
            finished.response, finished.is_cut = answer.pieces, answer.is_cut
        finished.request = None
        if request is not None:
            request.release()
            finished.request = _joined(request)
        relay.answer_kept = relay.request_kept = None
        self._activity.add(finished)

    @staticmethod
    def forget(relay: Relay) -> None:
        """The request is somebody else's: what was kept of it is given up."""
        for kept in (relay.answer_kept, relay.request_kept):
            if kept is not None:
                kept.release()
        relay.answer_kept = relay.request_kept = None


def about_request(config: Config, target: ModelConfig | PeerModel, selector: str | None = None) -> Mapping[str, str]:
    """Return what is said of a request beside what everybody sees of it."""
    about = {"fifo_priority": str(config.priority.get(target.id, 0))} if isinstance(target, ModelConfig) else {}
    return about | ({"selector": selector} if selector else {})


def _waited(relay: Relay) -> tuple[float, float]:
    """Return when the model was ready for the request, and when the load began that it waited for; 0.0 for never."""
    lease = relay.lease
    if lease is None:  # nobody waits for a peer
        return (relay.began if relay.to_peer else 0.0), 0.0
    return (lease.granted_at or relay.began) if lease.is_granted else 0.0, lease.load_began


def _content(relay: Relay, error: Error | None) -> tuple[str, str]:
    """Return type and encoding of what the client was sent, "" for what it was not."""
    if relay.has_own_stream:
        return "text/event-stream", ""
    if relay.answer is not None:
        return relay.answer[0].content_type, relay.answer[0].content_encoding
    return (error_body(error, relay.headers.get("Accept", ""))[0] if error is not None else ""), ""


def _joined(kept: Kept) -> bytes | None:
    """Return the request's body, None if it was not sent or is not kept."""
    if kept.is_cut or not kept.pieces:
        return None
    return kept.pieces[0] if len(kept.pieces) == 1 else b"".join(kept.pieces)


def _no_headers() -> Pairs:
    return ()
