"""May what the configuration says be done as root? Who can write its files, and which models would be root."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from llamaswapd.config.schema import ModelConfig
from llamaswapd.errors import ConfigError, Problem
from llamaswapd.links import steps
from llamaswapd.systemd.unit import Host, Settings, build

ROOT = 0
_OTHERS = stat.S_IWGRP | stat.S_IWOTH  # an access control list that lets somebody write shows as the group's, acl(5)
_HIDDEN = "where the launcher may not look, such as /home; put the file itself into /etc/llamaswapd, in place of a link"


def check_files(paths: Iterable[Path], owner: int = ROOT) -> None:
    """Raise ConfigError unless nobody but `owner` can change what is at these paths.

    That takes every directory on the way, and for a symbolic link the way to it and the way from it. What does not
    exist nobody has changed. As only the owner can change what has been looked at, it is the same when it is read.
    """
    reasons = {reason: str(path) for path in paths for reason in _doubts(path, owner)}
    if reasons:
        raise ConfigError(Problem(path, "", reason) for reason, path in reasons.items())


def _doubts(path: Path, owner: int) -> Iterator[str]:
    # Not abspath(): after a link `..` is another folder.
    *way, end = (step for step, _ in steps(os.path.join(os.getcwd(), path)))
    for step in way:
        yield from _doubt(step, owner, may_be_sticky=True)
    yield from _doubt(end, owner, may_be_sticky=False)


def _doubt(path: str, owner: int, *, may_be_sticky: bool) -> Iterator[str]:
    """Say who else can change what is at a path, if somebody can."""
    try:
        found = os.lstat(path)
    except PermissionError:
        yield f"leads to {_HIDDEN}"
        return
    except OSError:
        return
    if found.st_uid not in (ROOT, owner):
        yield f"{path} belongs to {_user(found.st_uid)}, not to root, who is to do what it says; chown root {path}"
    mode = stat.S_IMODE(found.st_mode)
    # Whoever can write a sticky directory can make files there, but not replace those of others: unlink(2).
    is_sticky = may_be_sticky and stat.S_ISDIR(found.st_mode) and mode & stat.S_ISVTX
    if mode & _OTHERS and not is_sticky and not stat.S_ISLNK(found.st_mode):
        who = "everybody" if mode & stat.S_IWOTH else "its group"
        yield f"{path} can be written by {who} (mode {mode:04o}), and root is to do what it says; chmod go-w {path}"


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def check_users(models: Mapping[str, ModelConfig], host: Host) -> None:
    """Raise ConfigError for models that would run as root without the configuration's saying so.

    It says so by `User: root`, and by a container block, since the engine's client is root's. What else is done as root
    in a unit (ExecStart= with `+`, ExecStartPre= with `!`) are the file's own words, which are root's.
    """
    problems = [
        Problem("", f"models.{model.id}.systemd", f'model "{model.id}" would run as root; {_REMEDY}')
        for model in models.values()
        if model.container is None and _is_root(build(model, host).settings) and not _says_root(model.systemd)
    ]
    if problems:
        raise ConfigError(problems)


_REMEDY = "give it a User: of its own, or DynamicUser: yes; write User: root if that is what you want"


def _is_root(settings: Settings) -> bool:
    user, dynamic = _last(settings, "User"), _last(settings, "DynamicUser")
    return user in ("root", "0") or (not user and dynamic.lower() not in ("1", "yes", "y", "true", "t", "on"))


def _says_root(settings: Settings) -> bool:
    return _last(settings, "User") in ("root", "0")


def _last(settings: Settings, name: str) -> str:
    return settings.get(name, ("",))[-1].strip()
