"""What can be done to a Debian 13 with the package in it by those who should not be able to."""

from __future__ import annotations

from pathlib import Path

import pytest
from beds import INSIDE, INSTALLED, NEEDS_ROOT, container, drive

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(300), NEEDS_ROOT]


def test_neither_a_local_user_nor_a_model_nor_the_daemon_can_do_more_than_they_should(debs: list[Path]) -> None:
    with container("trixie") as bed:
        drive("install-deb", bed, str(debs[0]))
        drive("exec", bed, "--", *INSTALLED, f"{INSIDE}/tests/testbed/inside_security.py")
