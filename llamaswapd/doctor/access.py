"""May somebody get at a file, and if not, which step of the way is in the way? By permission bits and ACLs.

path_resolution(7), acl(5). What a unit's mounts hide is asked first: `Hidden`.
"""

from __future__ import annotations

import os
import shlex
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamaswapd.doctor.machine import Machine
from llamaswapd.links import steps

READ, WRITE, EXECUTE = 4, 2, 1
_VERBS = {READ: "read", EXECUTE: "executed", READ | WRITE: "used", READ | EXECUTE: "listed"}


@dataclass(frozen=True)
class Identity:
    """Whom a unit's processes run as."""

    name: str  # "" for a user that is made when the unit starts
    uid: int | None  # None for the same
    gids: frozenset[int]
    overrides: bool = False  # has CAP_DAC_OVERRIDE
    model_group: str = ""  # one of its groups to which files can be given

    def __str__(self) -> str:
        return f"user {self.name}" if self.name else "a user of the model's own"


@dataclass(frozen=True)
class Hidden:
    """A part of the file system that the unit does not see."""

    prefix: str
    why: str
    remedy: str

    def holds(self, path: str) -> bool:
        return path == self.prefix or path.startswith(self.prefix.rstrip("/") + "/")


@dataclass(frozen=True)
class Obstacle:
    """The first step of the way that cannot be taken."""

    step: str
    why: str  # completes the sentence that begins with the step
    remedy: str
    is_missing: bool = False


def obstacle(machine: Machine, path: str, who: Identity, want: int, hidden: Sequence[Hidden] = ()) -> Obstacle | None:
    """Return what keeps somebody from a file, None if nothing does. Raises Unseen where we cannot look ourselves."""
    last = ""
    for step, found in way(machine, path):
        if found is None:
            return Obstacle(step, "does not exist", "", is_missing=True)
        for closed in hidden:
            if closed.holds(step):
                return Obstacle(step, closed.why, closed.remedy)
        if stat.S_ISLNK(found.st_mode):
            continue
        if last and not _may(machine, last, who, EXECUTE):
            return _refusal(machine, last, who, EXECUTE, is_end=False)
        last = step
    return None if _may(machine, last, who, want) else _refusal(machine, last, who, want, is_end=True)


def way(machine: Machine, path: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield every step from / to the file, links and where they lead included; None for what does not exist."""
    last_link = ""
    for step, is_link in steps(path, machine.readlink):
        try:
            found = machine.lstat(step)
        except OSError:
            yield step, None
            return
        yield step, found
        last_link = step if is_link else ""
    if last_link:  # one too many
        yield last_link, None


def resolved(machine: Machine, path: str) -> str:
    """Return where a path leads."""
    *_, (end, _) = ((step, found) for step, found in way(machine, path) if not found or not stat.S_ISLNK(found.st_mode))
    return end


def _may(machine: Machine, path: str, who: Identity, want: int) -> bool:
    found = machine.lstat(path)
    mode = found.st_mode
    if who.overrides:
        return not want & EXECUTE or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if who.uid == found.st_uid:
        return not want & ~(mode >> 6)
    if acl := machine.acl(path):
        return _acl_grants(acl, who, found.st_gid, want)
    return not want & ~((mode >> 3) if found.st_gid in who.gids else mode)


# linux/posix_acl_xattr.h: a version, then entries of tag, permissions and id.
_USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x02, 0x04, 0x08, 0x10, 0x20


def _acl_grants(acl: bytes, who: Identity, owner_gid: int, want: int) -> bool:
    """Say what an access control list says of somebody who does not own the file; acl(5), "Access check algorithm"."""
    entries = list(struct.iter_unpack("<HHI", acl[4:]))
    mask = next((bits for tag, bits, _ in entries if tag == _MASK), 7)
    for tag, bits, uid in entries:
        if tag == _USER and uid == who.uid:
            return not want & ~(bits & mask)
    of_groups = [
        bits & mask
        for tag, bits, gid in entries
        if (tag == _GROUP_OBJ and owner_gid in who.gids) or (tag == _GROUP and gid in who.gids)
    ]
    others = next((bits for tag, bits, _ in entries if tag == _OTHER), 0)
    return any(not want & ~bits for bits in of_groups or [others])


def _refusal(machine: Machine, path: str, who: Identity, want: int, *, is_end: bool) -> Obstacle:
    found = machine.lstat(path)
    owner = machine.user(str(found.st_uid))
    owned = f"{owner.name if owner else found.st_uid}:{machine.group_name(found.st_gid)}"
    what = (
        f"cannot be {_VERBS[want]}" if is_end and want != READ else "cannot be read" if is_end else "cannot be entered"
    )
    why = f"{what} by {who} (mode {stat.S_IMODE(found.st_mode):04o}, {owned})"
    return Obstacle(path, why, _remedy(machine, path, who, want, stat.S_ISDIR(found.st_mode), is_end))


def _remedy(machine: Machine, path: str, who: Identity, want: int, is_directory: bool, is_end: bool) -> str:
    """Return the command that opens a step to this user and to as few others as can be."""
    quoted = shlex.quote(path)
    bits = "".join(letter for bit, letter in ((READ, "r"), (WRITE, "w"), (EXECUTE, "x")) if want & bit)
    if is_end and not is_directory and who.model_group and want == READ:
        return f"chgrp {who.model_group} {quoted} && chmod g+r {quoted}"
    if who.uid != 0 and machine.exists("/usr/bin/setfacl"):
        whom = f"u:{who.name}" if who.name else f"g:{who.model_group}" if who.model_group else "o"
        return f"setfacl -m {whom}:{bits} {quoted}"
    return f"chmod o+{bits} {quoted}"
