"""The program on Debian 12 and 13, with Debian's libraries and the system's own manager."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from beds import INSIDE, NEEDS_ROOT, PYTEST, ROOT, container, drive

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(180), NEEDS_ROOT]


SUITES = os.environ.get("LLAMASWAPD_TEST_SUITES", "bookworm trixie").split()


@pytest.fixture(scope="module", params=SUITES)
def bed(request: pytest.FixtureRequest) -> Iterator[str]:
    with container(request.param) as name:
        yield name


def test_what_is_pure_and_the_front_end_work_with_debians_libraries(bed: str) -> None:
    parts = ("config", "core", "activity", "machine", "http")
    found = [path for part in parts for path in (ROOT / "tests" / part).glob("test_*.py")]
    files = [path for path in found if "from hypothesis" not in path.read_text()]  # not installed there
    inside = [f"{INSIDE}/{path.relative_to(ROOT)}" for path in sorted(files)]
    drive("exec", bed, "--", *PYTEST, f"--confcutdir={INSIDE}/tests", *inside)


def test_models_are_units_of_the_system(bed: str) -> None:
    drive("exec", bed, "--", *PYTEST, f"{INSIDE}/tests/testbed/inside_system.py")


def test_models_are_locked_up(bed: str) -> None:
    drive("exec", bed, "--", *PYTEST, f"{INSIDE}/tests/testbed/inside_sandbox.py")


def test_the_program_in_two_halves_does_what_it_is_to_and_no_more(bed: str) -> None:
    drive("exec", bed, "--", *PYTEST, f"{INSIDE}/tests/testbed/inside_launcher.py")
