"""The example that comes with the program shows everything, and all of it works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest

from llamaswapd.config import dialect
from llamaswapd.config.decode import fields_by_key
from llamaswapd.config.jsonschema import sections_within
from llamaswapd.config.load import load
from llamaswapd.config.report import Report
from llamaswapd.config.schema import Config, Section
from llamaswapd.config.tree import Map, Node

EXAMPLE = Path(__file__).parents[2] / "packaging" / "config.example.yaml"
LINES = EXAMPLE.read_text().splitlines()


def shown(hint: Any, node: Node | None) -> Iterator[tuple[type[Section], str]]:
    """Yield every key that a tree has, by the kind of section it stands in."""
    if not isinstance(node, Map):
        return
    hint = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if isinstance(hint, type) and issubclass(hint, Section):
        for key, (_, field_type) in fields_by_key(hint).items():
            if (found := node.get(*key.split("."))) is not None:
                yield hint, key
                yield from shown(field_type, found)
    elif get_origin(hint) is not None:
        kind = next((each for each in get_args(hint) if sections_within(each)), None)
        for each in [node] if isinstance(kind, type) and type(None) in get_args(hint) else node.items.values():
            yield from shown(kind, each)


def test_the_example_loads_without_a_warning() -> None:
    loaded = load([EXAMPLE], environ={}, is_strict=True)
    assert not loaded.warnings
    assert loaded.config.models
    assert loaded.config.groups


def test_the_other_half_of_the_example_loads_too(tmp_path: Path) -> None:
    text = EXAMPLE.read_text().replace("use: group", "use: matrix").replace("/var/lib/llamaswapd", str(tmp_path))
    text = re.sub(r"^#(apiKeys:|  - \$|store:|  path:)", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "c.yaml").write_text(text)
    config = load([tmp_path / "c.yaml"], environ={"LLAMASWAPD_KEY": "k"}).config
    assert config.matrix is not None
    assert config.api_keys == ("k",)
    assert config.store is not None


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section in sections_within(Config) for key in fields_by_key(section)]
)
def test_the_example_names_every_key(section: type[Section], key: str) -> None:
    root = dialect.parse(EXAMPLE.read_text(), "", Report())
    last = key.rpartition(".")[2]
    commented = any(re.match(rf"# *{re.escape(last)}:", line) for line in LINES)
    assert (section, key) in set(shown(Config, root)) or commented


def test_every_line_of_the_example_fits_a_page() -> None:
    assert max(map(len, LINES)) <= 120
