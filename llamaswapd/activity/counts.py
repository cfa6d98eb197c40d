"""What has been counted since the start, by model: for whoever draws curves of it. Nothing is ever taken back."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Container, Sequence

from llamaswapd.activity.record import SUCCESS, Record

# Upper bounds of the classes, in seconds: from what a proxy adds to what a load or a long answer takes.
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

MODELS_LIMIT = 1000  # clients can ask for names that nobody has configured
NAME_LIMIT = 256  # characters; each name stands in some sixty lines of what Prometheus reads
OTHERS = "other"


class Histogram:
    """How often a time was in each class: `counts` belong to BOUNDS_S, the last one to what is above all of them."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum += seconds

    def observe_all(self, seconds: list[float]) -> None:
        """The same for many at once, which are in order."""
        self.sum += sum(seconds)
        counts, at = self.counts, 0
        for place, bound in enumerate(BOUNDS_S):
            if at == len(seconds):
                return
            behind = bisect_right(seconds, bound, at)
            counts[place] += behind - at
            at = behind
        counts[-1] += len(seconds) - at


class ModelCounts:
    """Of one model: requests by status, tokens; seconds of requests, of waiting for the model, to the first byte."""

    __slots__ = ("cached", "duration", "first_byte", "input", "output", "requests", "waiting")

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.input = self.output = self.cached = 0
        self.duration = Histogram()
        self.waiting = Histogram()  # also for its load
        self.first_byte = Histogram()

    def add(self, status: int, duration: float, waiting: float | None, first_byte: float | None) -> None:
        """Count one request, with its times in seconds, None for what did not come about."""
        requests = self.requests
        requests[status] = requests.get(status, 0) + 1
        # `observe`, three times: calling it would take as long as what it does.
        kind = self.duration
        kind.counts[bisect_left(BOUNDS_S, duration)] += 1
        kind.sum += duration
        if waiting is not None:
            kind = self.waiting
            kind.counts[bisect_left(BOUNDS_S, waiting)] += 1
            kind.sum += waiting
        if first_byte is not None:
            kind = self.first_byte
            kind.counts[bisect_left(BOUNDS_S, first_byte)] += 1
            kind.sum += first_byte

    def add_all(self, group: Sequence[Record]) -> None:
        """Count plain requests of this model, with their tokens: none waited, all were answered in one piece."""
        requests = self.requests
        requests[SUCCESS] = requests.get(SUCCESS, 0) + len(group)
        durations = sorted([each.ended - each.began for each in group])
        self.duration.observe_all(durations)
        self.first_byte.observe_all(durations)
        self.waiting.counts[0] += len(group)
        for tokens, times in Counter([each.tokens for each in group]).items():
            self.input += tokens.input * times
            self.output += tokens.output * times
            self.cached += max(tokens.cached, 0) * times


class Counts(dict[str, ModelCounts]):
    """By model id. Those not configured are one, called `other`, beyond a thousand and if their names are very long."""

    configured: Container[str] = frozenset()

    def __missing__(self, model_id: str) -> ModelCounts:
        if (len(self) >= MODELS_LIMIT or len(model_id) > NAME_LIMIT) and model_id not in self.configured:
            return self.setdefault(OTHERS, ModelCounts())
        made = self[model_id] = ModelCounts()
        return made
