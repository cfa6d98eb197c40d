"""What tests of both ways of a request share."""

from __future__ import annotations

import pytest
from ways import close_express


@pytest.fixture(params=["express", "ordinary"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the test run on the express way, and on the ordinary one alone."""
    if request.param == "ordinary":
        close_express(monkeypatch)
    return str(request.param)
