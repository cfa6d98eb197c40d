"""How tests choose the way of a request."""

from __future__ import annotations

import pytest

from llamaswapd.http import connection, route


def close_express(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close the express way, for connections that come from now on."""
    monkeypatch.setattr(route, "EXPRESS_PATHS", frozenset())
    # What was found out about a head holds as long as its configuration.
    connection._templates._kept.clear()
    connection._templates.last = None
