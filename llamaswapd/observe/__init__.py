"""What observers may watch: events, our own log lines, the requests in flight. Knows neither HTTP nor the engine."""

from llamaswapd.observe.feed import Event, Feed
from llamaswapd.observe.inflight import Inflight
from llamaswapd.observe.log import AccessLog, LogRing


class Observer:
    """Everything that can be observed, in one hand: what the front end is given."""

    def __init__(self) -> None:
        self.events: Feed[Event] = Feed()
        self.log = LogRing()
        self.access = AccessLog()
        self.inflight = Inflight(self.events)
