"""A machine that is a folder, and models on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamaswapd.config.schema import ModelConfig
from llamaswapd.doctor.case import Case, Scope, Situation, case
from llamaswapd.doctor.machine import Machine, User
from llamaswapd.systemd.sandbox import defaults
from llamaswapd.systemd.unit import Host, build

ME = os.getuid()
MY_GROUP = os.getgid()
ALICE = 4711  # nobody here
GROUPS = {
    "llamaswapd-model": 4001,
    "video": 4002,
    "render": 4003,
    "systemd-journal": 4004,
    "mine": MY_GROUP,
    "alice": ALICE,
}
USERS = {
    "root": User("root", 0, frozenset({0}), "/root"),
    "alice": User("alice", ALICE, frozenset({ALICE}), "/home/alice"),
    "llamaswapd": User("llamaswapd", 4712, frozenset({4712})),
}


@dataclass
class Folder:
    """Makes a machine of a folder; what is put into it is ours, so nobody in USERS but root could own it."""

    root: Path
    answers: dict[str, str] = field(default_factory=dict)  # program → what it prints
    holders: dict[int, str] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=lambda: dict(GROUPS))

    @property
    def machine(self) -> Machine:
        return Machine(
            self.root,
            uid=ALICE,
            user=lambda name: next((user for user in USERS.values() if name in (user.name, str(user.uid))), None),
            group=self.groups.get,
            group_name=lambda gid: next((name for name, number in GROUPS.items() if number == gid), str(gid)),
            ask=lambda command: self.answers.get(" ".join(command), self.answers.get(command[0])),
            holder=self.holders.get,
        )

    def put(self, name: str, text: str = "", mode: int = 0o644) -> Path:
        """Make a file, and the folders above it for everybody."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def case(self, cmd: str = "/usr/bin/server", scope: Scope = "launcher", **fields: Any) -> Case:
        settings: Mapping[str, Any] = fields.pop("systemd", {})
        own = {name: (value,) if isinstance(value, str) else value for name, value in settings.items()}
        model = ModelConfig(**{"id": "qwen", "cmd": cmd, "systemd": own, **fields})
        locked = defaults({name for name in self.groups if name in GROUPS}) if scope == "launcher" else {}
        return case(self.machine, model, build(model, Host(257, "/", defaults=locked)), scope)

    def situation(self, *cases: Case, scope: Scope = "launcher", files: tuple[str, ...] = ()) -> Situation:
        return Situation(scope, files, cases, "alice")
