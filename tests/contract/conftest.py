"""Makes `blackbox` importable for the suites of this folder, and knows their marker."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ours(why): llama-swap itself does not do so; see tests/contract/README.md")
