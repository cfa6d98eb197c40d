"""The requests that are being answered, on either way: counted for the drain, told to the access log."""

from __future__ import annotations

import asyncio

from llamaswapd.observe.access import Answered
from llamaswapd.observe.log import AccessLog

UNLOGGED_PATHS = ("/wol-health", "/api/performance", "/metrics")
CLIENT_LEFT = 499  # in the access log and the activity: no answer was sent, as nginx writes it


class Traffic:
    """Counts requests; `begin` and `end` come in pairs."""

    def __init__(self, access: AccessLog) -> None:
        self.active = 0
        self.access = access
        self._add = access.add
        self._idle: asyncio.Event | None = None  # once somebody has waited for it

    def begin(self) -> None:
        """A request is being answered from now on."""
        self.active += 1

    def end(self, told: Answered | None = None) -> None:
        """It has been answered, or its client has left; the access log is told."""
        if told is not None:
            self._add(told)
        self.active -= 1
        if not self.active and self._idle is not None:
            self._idle.set()

    def idle(self) -> asyncio.Event:
        """Return what is set as soon as none is `active`; when it is awaited, another may have begun."""
        self._idle = self._idle or asyncio.Event()
        self._idle.clear()
        return self._idle


def printable(text: str) -> str:
    """Return what a client wrote so that it cannot forge lines or confuse terminals."""
    return text if text.isprintable() else ascii(text)[1:-1]
