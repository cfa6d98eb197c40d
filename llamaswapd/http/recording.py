"""Hands what the relays know of a request to the activity, once its answer has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from llamaswapd.activity.record import REQUESTS_NOT_KEPT, Record
from llamaswapd.activity.usage import shortened
from llamaswapd.config.schema import Config, ModelConfig, PeerModel
from llamaswapd.errors import Error
from llamaswapd.http.answers import error_body
from llamaswapd.http.kept import Budget, KeptRequest
from llamaswapd.http.relay import Relay

MIB = 1024 * 1024


class Activity(Protocol):
    """Whoever makes rows of what has ended."""

    def add(self, record: Record) -> None: ...


class Recorder:
    """Begins and ends the record of each request. `capture_mib`: how much of a request and its answer is kept."""

    def __init__(self, activity: Activity, capture_mib: int) -> None:
        self.note = activity.add  # of what needs nothing else, and has no budget any more
        self.budget = Budget(max(capture_mib, 0) * MIB)

    def allow(self, capture_mib: int) -> None:
        """Set how much of a request and its answer is kept, from the next one on."""
        self.budget.allow(max(capture_mib, 0) * MIB)

    def begin(self, relay: Relay) -> None:
        """Keep what goes by."""
        relay.budget = self.budget
        if self.budget.limit and relay.sent_path not in REQUESTS_NOT_KEPT:
            relay.request_kept = KeptRequest(self.budget)

    def end(self, relay: Relay, error: Error | None = None) -> None:
        """The answer has ended, or its client has left. `error`: what the client was told in place of an answer."""
        lease, failure = relay.lease, error or relay.failure
        if lease is not None:
            relay.granted = (lease.granted_at or relay.began) if lease.is_granted else 0.0
            relay.load_began = lease.load_began
        elif relay.to_peer:  # nobody waits for it
            relay.granted = relay.began
        if failure is not None:
            relay.error, relay.failure = shortened(str(failure)), None  # its traceback holds everything
            relay.type_of_error = error_body(failure, relay.headers.get("Accept", ""))[0]
        relay.take_over_kept()
        self.note(relay)

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
