"""Whatever stands in a file, it is loaded or refused with a reason; nothing else happens, and it ends.

Valid configurations are made from the models of the schema, then damaged. LLAMASWAPD_TEST_FUZZ says how many; a failing
one is shown with its seed, from which it can be made again. LLAMASWAPD_TEST_SEED is the first one's, 0 if not set.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from llamaswapd.config.decode import BOOLEAN_WORDS, fields_by_key
from llamaswapd.config.load import load
from llamaswapd.config.schema import (
    Capabilities,
    CommaSeparated,
    Config,
    Duration,
    Fifo,
    Filters,
    Group,
    Matrix,
    ModelConfig,
    Peer,
    Profile,
    Router,
    RouterSettings,
    Scheduling,
    Section,
    Selector,
    SpilloverSettings,
    Strategy,
    UnitSettings,
    UpstreamSection,
)
from llamaswapd.errors import ConfigError

COUNT = int(os.environ.get("LLAMASWAPD_TEST_FUZZ", "1000"))
SEED = int(os.environ.get("LLAMASWAPD_TEST_SEED", "0"))

NAMES = ["a", "b", "c", "org/d", "e:f", "b-variant", "p/x", "x", "y", "(default)", "comfyui_auto", "sel", "ä"]
TEXTS = [
    "", " ", "a", "x y", "${PORT}", "${MODEL_ID}", "${PID}", "${m1}", "${m2}", "-${m3}-", "${unknown}", "${a.b}", "$x",
    "${env.SET}", "${env.UNSET}", "http://h:1/p", "http://[::1", "http://h:99999", "/health", "none", "%zz", "\\", "'",
    '"', "#", "\t", "\n", "\0", "\x7f", "\ud7ff", "é\u0301", "😀", "{", "[", "&a", "*a", "!x", "<<", "a: b", "- a", "~",
    "null", "true", "on", "1e999", ".nan", ".inf", "0x10", "1:30", "2024-01-02", "x" * 3000, "a | b & +s1", "(" * 200,
    "((a", "+", "a @", "(?=x)", "(a*)*b", "[[:alpha:]]", "\\pL", "a{1001}", "text", "audio", "warm", "spillover", "5s",
    "15s", "-1h", "matrix", "group", "24G", "50%", "/no/such/dir/file", "/", "/tmp", "rfc3339", "debug",
]  # fmt: skip
TAGS = [
    "!!float",
    "!!int",
    "!!str",
    "!!binary",
    "!!null",
    "!!bool",
    "!!timestamp",
    "!!map",
    "!!seq",
    "!!merge",
    "!x",
    "!",
]
NUMBERS = [0, 1, -1, -2, 5, 30, 5800, 65535, 65536, 2**31, 2**63, 2**64, -(2**63), 10**30, 1.5, -0.0, 1e30, 1e308, 0.1]
GOOD_TEXTS = ["", " ", "a", "x y", "${m1}", "-${m2}-", "${a.b}", "$x", "é\u0301", "😀", "#", "on", "text", "/p"]
GOOD_SETTINGS = {"MemoryMax": "24G", "Nice": "5", "Environment": ["A=b", "C=d"], "manager": "auto", "BindPaths": "/a"}


class Maker:
    """Makes what can stand in a file, by the types of the schema."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.models: list[str] = []
        self.names = 0

    def config(self) -> dict[str, Any]:
        self.models = self.some(NAMES[:6]) or ["a"]
        config = self.section(Config)
        config["macros"] = {f"m{i}": self.pick([5, 0.5, True, "x", "1e6", "a b", "é"]) for i in range(1, 4)}
        config["models"] = {name: self.section(ModelConfig) for name in self.models}
        for other in self.chance.sample(["groups", "matrix", "routing"], 2):
            config.pop(other, None)
        return config

    def new_name(self) -> str:
        self.names += 1
        return f"name-{self.names}"

    def section(self, section: type[Section]) -> dict[str, Any]:
        wanted = REQUIRED.get(section, ())
        made: dict[str, Any] = {}
        for key, (name, hint) in fields_by_key(section).items():
            if key in wanted or self.chance.random() < 0.25:
                block, _, inner = key.rpartition(".")
                (made.setdefault(block, {}) if block else made)[inner] = self.field(section, name, hint)
        return made

    def field(self, section: type[Section], name: str, hint: Any) -> Any:
        special = SPECIAL.get((section, name))
        return special(self) if special and self.chance.random() < 0.98 else self.value(hint)

    def value(self, hint: Any) -> Any:
        marks = getattr(hint, "__metadata__", ())
        if marks:
            hint = get_args(hint)[0]
        if any(isinstance(mark, CommaSeparated) for mark in marks):
            return ", ".join(self.some(NAMES))
        if any(isinstance(mark, Duration) for mark in marks):
            return self.pick(["5s", "1m30s", "0s"])
        if any(isinstance(mark, UnitSettings) for mark in marks):
            return {name: GOOD_SETTINGS[name] for name in self.some(list(GOOD_SETTINGS))}
        if get_origin(hint) is Literal:
            return self.pick(list(get_args(hint)))
        if get_origin(hint) is tuple:
            return self.some(NAMES)
        if get_origin(hint) is Mapping:
            return {name: self.value(get_args(hint)[1]) for name in self.some(NAMES)}
        if isinstance(hint, type) and issubclass(hint, Section):
            return self.section(hint)
        if get_args(hint):  # something or None
            return self.value(get_args(hint)[0])
        return self.pick(PLAIN.get(hint, [*GOOD_TEXTS, *NUMBERS, None]))

    def pick(self, choices: list[Any]) -> Any:
        return self.chance.choice(choices)

    def some(self, choices: list[str]) -> list[str]:
        return self.chance.sample(choices, self.chance.randint(0, 4))

    def expression(self, name: str, depth: int = 0) -> str:
        if depth > 3 or self.chance.random() < 0.4:
            earlier = [f"+s{i}" for i in range(1, 4) if f"s{i}" < name]
            return str(self.pick([*(model for model in self.models if model.isidentifier()), *earlier, "a"]))
        parts = [self.expression(name, depth + 1) for _ in range(self.chance.randint(1, 4))]
        return "(" + self.pick([" & ", "|"]).join(parts) + ")"

    # ---- damage ----------------------------------------------------------------------------------------------------

    def damaged(self, tree: dict[str, Any]) -> dict[str, Any]:
        for _ in range(self.chance.choice([0, 0, 1, 1, 2, 5])):
            self.damage(tree)
        return tree

    def damage(self, tree: Any) -> None:
        """Change one thing somewhere below."""
        while True:
            keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
            if not keys:
                return
            key = self.pick(keys)
            if isinstance(tree[key], dict | list) and tree[key] and self.chance.random() < 0.8:
                tree = tree[key]
                continue
            kind = self.chance.randrange(6)
            if kind == 0:
                tree[key] = self.pick(
                    [*TEXTS, *NUMBERS, True, False, None, [], {}, [None], {"": None}, [[]], {"a": {}}]
                )
            elif kind == 1 and isinstance(tree, dict):
                tree[self.misspelt(str(key))] = tree.pop(key)
            elif kind == 2 and isinstance(tree, list):
                tree.append(tree[key])
            elif kind == 3:
                tree[key] = self.deep(tree[key])
            elif kind == 4 and isinstance(tree[key], str):
                tree[key] += self.pick(TEXTS)
            else:
                tree[key] = self.pick(["${m1}", "${m2}", "${PORT}", "${MODEL_ID}", "${env.SET}", "${env.UNSET}"])
            return

    def misspelt(self, key: str) -> str:
        return self.pick([key.lower(), key[:-1], key + "s", self.pick(TEXTS), f"${{m1}}{key}", "<<", "x-" + key])

    def deep(self, inside: Any) -> Any:
        for _ in range(self.pick([2, 20, 60, 120, 400])):
            inside = self.pick([[inside], {"k": inside}])
        return inside

    # ---- as text ---------------------------------------------------------------------------------------------------

    def text(self, tree: dict[str, Any]) -> str:
        """Return JSON, which is YAML, with some scalars bare and now and then a few letters lost or doubled."""
        text = json.dumps(tree, ensure_ascii=self.chance.random() < 0.05, indent=self.pick([None, 1]))
        for word in self.some([*BOOLEAN_WORDS, "a", "5s", "${m1}", "${PORT}", "${env.SET}", "0x10", "1e999", ".nan"]):
            text = text.replace(f'"{word}"', word)
        if self.chance.random() < 0.15:
            keys = re.findall(r'"\w+": ', text)
            before, key, behind = text.partition(self.pick(keys or ["-"]))
            text = f"{before}{key}{self.pick(TAGS)} {behind}" if key else text
        if self.chance.random() < 0.15:
            at = self.chance.randrange(len(text) + 1)
            text = (
                text[:at]
                + self.pick(["", "\t", "\n", "- ", ": ", "#", "*a", "&a ", "---\n", "'", "}"])
                + text[at + 1 :]
            )
        return text


# What must be there for a section to have a chance.
REQUIRED: dict[type[Section], tuple[str, ...]] = {
    ModelConfig: ("cmd",),
    Selector: ("strategy", "targets"),
    Peer: ("proxy", "models"),
    Profile: ("pins",),
    Matrix: ("sets",),
    Group: ("members",),
}

PLAIN: dict[Any, list[Any]] = {
    int: [0, 1, 5, 30, 5800],
    bool: [True, False, *BOOLEAN_WORDS],
    str: GOOD_TEXTS,
}


def groups(maker: Maker) -> dict[str, Any]:
    made = {name: maker.section(Group) for name in ("g", "h")}
    for name, members in zip(made, (maker.models[::2], maker.models[1::2]), strict=True):
        made[name]["members"] = members
    return made


SPECIAL: dict[tuple[type[Section], str], Callable[[Maker], Any]] = {
    (ModelConfig, "cmd"): lambda maker: maker.pick(["x --port ${PORT}", "${m1} ${PORT}", "x\n# c ${unknown}\n${PORT}"]),
    (ModelConfig, "proxy"): lambda maker: maker.pick(["http://h", "http://h:${PORT}/x", None]),
    (ModelConfig, "check_endpoint"): lambda maker: maker.pick(["/health", "x?y", " NONE ", "", None]),
    (ModelConfig, "macros"): lambda maker: {"m1": maker.pick([1, "y"]), "own": "-${m1}"},
    (ModelConfig, "aliases"): lambda maker: [maker.new_name() for _ in range(3)],
    (Capabilities, "in_"): lambda maker: maker.chance.sample(["text", "audio", "image"], 2),
    (Capabilities, "out"): lambda maker: ["text"],
    (Filters, "set_params_by_id"): lambda maker: {maker.new_name(): {"a.b": maker.pick(NUMBERS)}},
    (Peer, "proxy"): lambda maker: maker.pick(["http://h", "https://h/api"]),
    (Peer, "models"): lambda maker: maker.pick([["x"], ["x", "y"], ["y", "y", "z"]]),
    (Matrix, "vars"): lambda maker: {"v": maker.pick(maker.models)},
    (Matrix, "evict_costs"): lambda maker: {maker.pick(maker.models): maker.pick([1, 50])},
    (Matrix, "sets"): lambda maker: {f"s{i}": maker.expression(f"s{i}") for i in range(1, 4)},
    (Router, "use"): lambda maker: maker.pick(["group", "group", "matrix", ""]),
    (Scheduling, "use"): lambda maker: maker.pick(["fifo", ""]),
    (Fifo, "priority"): lambda maker: {maker.pick(maker.models): maker.pick([-1, 0, 10])},
    (Selector, "strategy"): lambda maker: maker.pick(list(get_args(Strategy))),
    (Selector, "targets"): lambda maker: [maker.pick(maker.models)],
    (SpilloverSettings, "spillover"): lambda maker: maker.pick([1, 4]),
    (Profile, "pins"): lambda maker: {maker.new_name(): maker.pick([*maker.models, None])},
    (RouterSettings, "groups"): groups,
    (Config, "groups"): groups,
    (Config, "selectors"): lambda maker: {maker.new_name(): maker.section(Selector)},
    (Config, "peers"): lambda maker: {maker.new_name(): maker.section(Peer)},
    (Config, "profiles"): lambda maker: {maker.new_name(): maker.section(Profile)},
    (Config, "store"): lambda maker: maker.pick([None, {"path": "/tmp/x"}]),
    (Config, "start_port"): lambda maker: maker.pick([1, 5800, None]),
    (UpstreamSection, "ignore_paths"): lambda maker: maker.pick([[], ["a$", r"(?i)\.JS"]]),
}


@pytest.mark.timeout(60 + COUNT / 20)
@pytest.mark.parametrize("part", range(10))
def test_any_file_is_loaded_or_refused_with_a_reason(tmp_path: Path, part: int) -> None:
    loaded = 0
    for seed in range(SEED + part, SEED + COUNT, 10):
        maker = Maker(seed)
        files = [tmp_path / "a.yaml", tmp_path / "b.yaml"][: maker.pick([1, 1, 1, 2])]
        for file in files:
            file.write_text(maker.text(maker.damaged(maker.config())), encoding="utf-8", errors="surrogatepass")
        try:
            found = load(files, environ={"SET": "5"}, is_strict=maker.chance.random() < 0.2)
        except ConfigError as refusal:
            reasons = [problem.message for problem in refusal.problems]
            if not reasons or not all(reasons):
                pytest.fail(f"seed {seed}: refused without a reason")
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        else:
            loaded += 1
            assert found.config.resolve("nobody") is None
            assert all(model.id == id_ for id_, model in found.config.models.items())
    print(f"{loaded} of {COUNT // 10} were loaded")
    assert loaded, "nothing that was made could be loaded"


def test_what_is_made_uses_every_section() -> None:
    made = [Maker(seed).config() for seed in range(300)]
    assert set[str]().union(*made) == {key.partition(".")[0] for key in fields_by_key(Config)}
