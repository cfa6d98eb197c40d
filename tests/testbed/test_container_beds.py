"""Models that are containers, with Debian's podman and docker."""

from __future__ import annotations

import pytest
from beds import INSIDE, NEEDS_ROOT, PYTEST, container, drive, run_in_vm

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(400), NEEDS_ROOT]

PACKAGES = {"podman": ("podman", "crun", "nftables", "uidmap"), "docker": ("docker.io", "docker-cli", "iptables")}


@pytest.mark.parametrize("client", ["podman", "docker"])
def test_a_container_leaves_nothing_behind_however_it_ends(client: str) -> None:
    with container("trixie", "--podman") as bed:
        drive("apt", bed, "update")
        drive("apt", bed, "install", "-y", "--no-install-recommends", *PACKAGES[client])
        inside = ("env", f"CONTAINER_CLIENT={client}", *PYTEST, f"{INSIDE}/tests/testbed/inside_podman.py")
        drive("exec", bed, "--", *inside)


def test_a_container_that_outgrows_its_memory_leaves_nothing_behind() -> None:
    inside = (*PYTEST, f"{INSIDE}/tests/testbed/inside_podman.py", "-k", "memory")
    run_in_vm("trixie", *inside, packages=("podman", "crun"))
