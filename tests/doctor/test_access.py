"""Which step of a path is in somebody's way."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from folders import ALICE, GROUPS, ME, MY_GROUP, Folder

from llamaswapd.doctor.access import EXECUTE, READ, Hidden, Identity, _acl_grants, obstacle, resolved

HERS = Identity("alice", ALICE, frozenset({ALICE}))
OWN = Identity("", None, frozenset({GROUPS["llamaswapd-model"]}), model_group="llamaswapd-model")
IN_MY_GROUP = Identity("bob", 4999, frozenset({MY_GROUP}))


def test_what_everybody_may_read_is_in_nobodys_way(folder: Folder) -> None:
    folder.put("/srv/models/x.gguf")
    assert obstacle(folder.machine, "/srv/models/x.gguf", HERS, READ) is None


def test_the_step_that_cannot_be_entered_is_named(folder: Folder) -> None:
    folder.put("/home/bob/models/x.gguf")
    folder.machine.path("/home/bob").chmod(0o700)
    found = obstacle(folder.machine, "/home/bob/models/x.gguf", OWN, READ)
    assert found
    assert found.step == "/home/bob"
    assert "cannot be entered by a user of the model's own (mode 0700, " in found.why
    assert found.remedy == "chmod o+x /home/bob"


def test_with_its_tool_at_hand_an_acl_is_the_remedy(folder: Folder) -> None:
    folder.put("/usr/bin/setfacl")
    folder.put("/home/bob/x y.gguf", mode=0o600)
    folder.machine.path("/home/bob").chmod(0o700)
    for who, whom in ((OWN, "g:llamaswapd-model"), (HERS, "u:alice")):
        found = obstacle(folder.machine, "/home/bob/x y.gguf", who, READ)
        assert found
        assert found.remedy == f"setfacl -m {whom}:x /home/bob"


def test_a_file_is_given_to_the_group_of_models(folder: Folder) -> None:
    folder.put("/srv/x y.gguf", mode=0o640)
    found = obstacle(folder.machine, "/srv/x y.gguf", OWN, READ)
    assert found
    assert found.step == "/srv/x y.gguf"
    assert found.remedy == "chgrp llamaswapd-model '/srv/x y.gguf' && chmod g+r '/srv/x y.gguf'"


def test_a_group_may_what_others_may_not(folder: Folder) -> None:
    folder.put("/srv/x.gguf", mode=0o640)
    assert obstacle(folder.machine, "/srv/x.gguf", IN_MY_GROUP, READ) is None
    folder.put("/srv/x.gguf", mode=0o604)
    assert obstacle(folder.machine, "/srv/x.gguf", IN_MY_GROUP, READ), "and the other way round"


def test_an_owner_may_not_what_others_may(folder: Folder) -> None:
    folder.put("/srv/x.gguf", mode=0o077)
    owner = Identity("me", ME, frozenset({MY_GROUP}))
    assert obstacle(folder.machine, "/srv/x.gguf", owner, READ)


def test_who_overrides_permissions_reads_all_and_executes_what_anybody_may(folder: Folder) -> None:
    root = Identity("root", 9, frozenset(), overrides=True)
    path = folder.put("/srv/x", mode=0)
    assert obstacle(folder.machine, "/srv/x", root, READ) is None
    assert obstacle(folder.machine, "/srv/x", root, EXECUTE)
    path.chmod(0o010)
    assert obstacle(folder.machine, "/srv/x", root, EXECUTE) is None


def test_links_are_followed_inside_the_machine(folder: Folder) -> None:
    folder.put("/data/blobs/1", mode=0o600)
    (folder.root / "srv").mkdir()
    (folder.root / "srv/x.gguf").symlink_to("/data/link/1")
    (folder.root / "data/link").symlink_to("blobs")
    assert resolved(folder.machine, "/srv/x.gguf") == "/data/blobs/1"
    found = obstacle(folder.machine, "/srv/x.gguf", OWN, READ)
    assert found
    assert found.step == "/data/blobs/1"


@pytest.mark.parametrize("target", ["/nowhere", "x.gguf"])
def test_a_link_to_nothing_and_a_loop_do_not_exist(folder: Folder, target: str) -> None:
    (folder.root / "srv").mkdir()
    (folder.root / "srv/x.gguf").symlink_to(target)
    found = obstacle(folder.machine, "/srv/x.gguf", OWN, READ)
    assert found
    assert found.is_missing


def test_the_first_step_that_is_missing_is_named(folder: Folder) -> None:
    folder.put("/srv/models/x.gguf")
    found = obstacle(folder.machine, "/srv/modles/x.gguf", OWN, READ)
    assert found
    assert (found.step, found.is_missing) == ("/srv/modles", True)


def test_what_a_unit_hides_is_hidden_behind_links_too(folder: Folder) -> None:
    folder.put("/home/bob/x.gguf")
    (folder.root / "srv").mkdir()
    (folder.root / "srv/x.gguf").symlink_to("/home/bob/x.gguf")
    hidden = [Hidden("/home", "is hidden", "move it")]
    found = obstacle(folder.machine, "/srv/x.gguf", OWN, READ, hidden)
    assert found
    assert (found.step, found.why, found.remedy) == ("/home", "is hidden", "move it")
    assert obstacle(folder.machine, "/srv", OWN, READ, [Hidden("/sr", "is hidden", "")]) is None


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


BASE = ((0x01, 6, 2**32 - 1), (0x04, 0, 2**32 - 1), (0x10, 4, 2**32 - 1), (0x20, 0, 2**32 - 1))


@pytest.mark.parametrize(
    ("entries", "is_granted"),
    [
        ((), False),
        (((0x02, 4, ALICE),), True),
        (((0x02, 0, ALICE), (0x08, 4, GROUPS["video"])), False),  # the user's own entry is the end of it
        (((0x08, 4, GROUPS["video"]),), True),
        (((0x08, 4, GROUPS["render"]),), False),
    ],
)
def test_access_control_lists_are_read_as_the_kernel_reads_them(
    entries: tuple[tuple[int, int, int], ...], is_granted: bool
) -> None:
    who = Identity("alice", ALICE, frozenset({GROUPS["video"]}))
    assert _acl_grants(acl(*BASE, *entries), who, owner_gid=1, want=READ) == is_granted


def test_the_mask_of_a_list_bounds_what_it_grants() -> None:
    who = Identity("alice", ALICE, frozenset())
    masked = acl((0x02, 7, ALICE), (0x10, 1, 2**32 - 1), (0x20, 7, 2**32 - 1))
    assert not _acl_grants(masked, who, owner_gid=1, want=READ)


def test_a_list_of_a_real_file_is_seen(folder: Folder) -> None:
    path = folder.put("/srv/x.gguf", mode=0o640)
    try:
        os.setxattr(path, "system.posix_acl_access", acl((0x01, 6, 2**32 - 1), (0x02, 4, ALICE), *BASE[1:]))
    except OSError:
        pytest.skip("the file system of tests has no access control lists")
    assert obstacle(folder.machine, "/srv/x.gguf", HERS, READ) is None
    assert obstacle(folder.machine, "/srv/x.gguf", OWN, READ)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_where_we_may_not_look_is_said(folder: Folder, tmp_path: Path) -> None:
    folder.put("/closed/x/y")
    (tmp_path / "closed").chmod(0)
    try:
        from llamaswapd.doctor.machine import Unseen

        with pytest.raises(Unseen):
            obstacle(folder.machine, "/closed/x/y", OWN, READ)
    finally:
        (tmp_path / "closed").chmod(0o755)
