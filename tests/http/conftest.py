"""What tests of both ways of a request share."""

from __future__ import annotations

import pytest

from llamaswapd.http.express import Express


@pytest.fixture(params=["express", "ordinary"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the test run on the express way, and on the ordinary one alone."""
    if request.param == "ordinary":
        monkeypatch.setattr(Express, "admit", lambda *_: None)
    return str(request.param)
