"""The Debian package is built, is clean by lintian, and does in a Debian 13 what an operator wants of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from beds import INSIDE, INSTALLED, NEEDS_ROOT, container, drive

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600), NEEDS_ROOT]


def test_the_package_is_installed_used_upgraded_removed_and_purged(debs: list[Path]) -> None:
    with container("trixie") as bed:
        drive("install-deb", bed, str(debs[0]))
        drive("copy-in", bed, str(debs[1]), "/var/tmp/testbed-debs")
        inside = " ".join(f"/var/tmp/testbed-debs/{package.name}" for package in debs)
        drive(
            "exec", bed, "-E", f"PACKAGES={inside}", "--", *INSTALLED, "-x", f"{INSIDE}/tests/testbed/inside_package.py"
        )
