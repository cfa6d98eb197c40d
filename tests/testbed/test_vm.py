"""Limits on models, on a kernel of its own: the cgroup controllers of the machine may be anything."""

from __future__ import annotations

import pytest
from beds import INSIDE, NEEDS_ROOT, PYTEST, run_in_vm

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(240), NEEDS_ROOT]


@pytest.mark.parametrize("suite", ["bookworm"])
def test_limits_are_enforced_and_clients_are_told(suite: str) -> None:
    run_in_vm(suite, *PYTEST, f"{INSIDE}/tests/testbed/inside_vm.py")
