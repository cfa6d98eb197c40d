"""Contract: the error envelope, its negotiation, and paths and methods that lead nowhere (http.md, 1)."""

from __future__ import annotations

import pytest
from blackbox import Program

pytestmark = pytest.mark.private


def test_x(house: Program) -> None:
    answer = house.chat("m", hello=1)
    print(answer)
    assert house.received("POST", "/v1/chat/completions", {"model": "m"}).path == "/v1/chat/completions"
    row = house.row_of("n", lambda: house.wish("n", body='{"usage":{"prompt_tokens":3,"completion_tokens":4}}'))
    assert row["tokens"]["input_tokens"] == 3
