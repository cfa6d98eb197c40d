"""The manual pages and the README say what the program does: every key, flag and setting, and examples that load."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from llamaswapd import __main__ as command_line
from llamaswapd.config import schema
from llamaswapd.config.decode import fields_by_key
from llamaswapd.config.environment import names_in
from llamaswapd.config.jsonschema import sections_within
from llamaswapd.config.load import load
from llamaswapd.config.schema import WITHOUT_EFFECT, CommaSeparated, Config, Container, ModelConfig, Section, Words
from llamaswapd.systemd.sandbox import defaults
from llamaswapd.systemd.unit import Host, build

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "man").glob("*.scd"))
README = ROOT / "README.md"

# Under which heading of llamaswapd.yaml(5) the keys of a section stand, and what stands before them there.
HEADINGS: dict[type[Section], tuple[str, str]] = {
    Config: ("TOP-LEVEL KEYS", ""),
    ModelConfig: ("MODEL KEYS", ""),
    schema.Compat: ("MODEL KEYS", "compat."),
    schema.Container: ("CONTAINERS", ""),
    schema.Filters: ("FILTERS", ""),
    schema.Group: ("GROUPS", ""),
    schema.Matrix: ("MATRIX", ""),
    schema.Routing: ("ROUTING", ""),
    schema.Router: ("ROUTING", "router."),
    schema.RouterSettings: ("ROUTING", "router.settings."),
    schema.Scheduling: ("ROUTING", "scheduler."),
    schema.SchedulerSettings: ("ROUTING", "scheduler.settings."),
    schema.Fifo: ("ROUTING", "scheduler.settings.fifo."),
    schema.Selector: ("SELECTORS", ""),
    schema.SpilloverSettings: ("SELECTORS", "settings."),
    schema.Profile: ("PROFILES", ""),
    schema.Peer: ("PEERS", ""),
    schema.PeerTimeouts: ("PEERS", "timeouts."),
    schema.Capabilities: ("CAPABILITIES", ""),
    schema.Timeouts: ("TIMEOUTS", ""),
    schema.Hooks: ("HOOKS", ""),
    schema.OnStartup: ("HOOKS", ""),
    schema.Performance: ("FURTHER SECTIONS", "performance."),
    schema.Store: ("FURTHER SECTIONS", "store."),
    schema.Ui: ("FURTHER SECTIONS", "ui."),
    schema.ActivityPage: ("FURTHER SECTIONS", "ui.activity."),
    schema.UpstreamSection: ("FURTHER SECTIONS", "upstream."),
}


def page(name: str) -> str:
    return (ROOT / "man" / f"{name}.scd").read_text()


def part(text: str, heading: str) -> str:
    """Return what stands under a heading of a page, up to the next one."""
    found = re.search(rf"^# {re.escape(heading)}\n(.*?)(?=^# |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"there is no heading {heading}"
    return found[1]


def entries(text: str) -> dict[str, str]:
    """Return the entries, by each of the names in bold in the line above the indented text."""
    found = re.findall(r"^(\*.+)\n((?:(?:\t.*)?\n)+)", text, re.MULTILINE)
    return {name: " ".join(body.split()) for head, body in found for name in re.findall(r"\*(.+?)\*", head)}


def keys() -> list[tuple[type[Section], str]]:
    """Return every key, but for those that a section has from another."""
    return [
        (section, key)
        for section in sections_within(Config)
        for key, (name, _) in fields_by_key(section).items()
        if name in inspect.get_annotations(section)
    ]


def type_in_words(hint: Any) -> str:
    """Return how the manual calls a field's type."""
    if any(isinstance(mark, CommaSeparated) for mark in getattr(hint, "__metadata__", ())):
        return "text"
    if any(isinstance(mark, Words) for mark in getattr(hint, "__metadata__", ())):
        return "text or list"
    if hasattr(hint, "__metadata__"):
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(filter(None, get_args(hint)))}"
    if type(None) in get_args(hint):
        hint = get_args(hint)[0]
    words = {str: "text", int: "integer", bool: "boolean", tuple: "list", float: "duration"}
    return words.get(get_origin(hint) or hint, "mapping")


def default_in_words(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}s"
    if value is None:
        return "unset"
    if isinstance(value, tuple) and value:
        return ", ".join(value).replace("\\", "\\\\").replace("*", "\\*")  # as scdoc wants it
    return value if isinstance(value, str) and value else "none"


@pytest.mark.parametrize(("section", "key"), keys())
def test_every_key_has_an_entry_with_its_type_and_default(section: type[Section], key: str) -> None:
    name, hint = fields_by_key(section)[key]
    heading, before = HEADINGS[section]
    entry = entries(part(page("llamaswapd.yaml.5"), heading)).get(before + key)
    assert entry, f"{key} has no entry in llamaswapd.yaml(5)"
    assert f"Type: {type_in_words(hint)}" in entry
    assert entry.endswith(f"Default: {default_in_words(getattr(section(), name))}.")


def test_every_entry_is_a_key() -> None:
    known: dict[str, set[str]] = {}
    for section, key in keys():
        heading, before = HEADINGS[section]
        known.setdefault(heading, set()).add(before + key)
    text = page("llamaswapd.yaml.5")
    assert {heading: set(entries(part(text, heading))) for heading in known} == known


def test_every_key_without_effect_is_named() -> None:
    listed = part(page("llamaswapd.yaml.5"), "KEYS WITHOUT EFFECT")
    for key in (key for names in WITHOUT_EFFECT.values() for key in names):
        assert f"*{key}*" in listed


def test_every_flag_has_an_entry() -> None:
    flags = {
        flag
        for action in command_line.flag_parser()._actions
        for flag in action.option_strings
        if not flag.startswith("--")
    }
    assert set(entries(part(page("llamaswapd.8"), "OPTIONS"))) == flags


def test_every_verb_has_an_entry() -> None:
    verbs = entries(part(page("llamaswapd.8"), "VERBS"))
    assert not set(command_line.VERBS) - set(verbs)


def test_every_setting_of_a_unit_has_an_entry() -> None:
    model = ModelConfig(id="m", cmd="server", cmd_stop="stop", env=("A=b",))
    settings = build(model, Host(version=252, directory="/")).settings
    described = entries(part(page("llamaswapd-units.7"), "WHAT A UNIT HOLDS"))
    assert {name for name in described if name.endswith("=")} == {f"{name}=" for name in settings}


def test_every_setting_of_the_sandbox_has_an_entry() -> None:
    settings = {*defaults({"video"}), "WorkingDirectory", "EnvironmentFile"}
    named = set(re.findall(r"\*([A-Za-z]+)=\*", part(page("llamaswapd-units.7"), "SANDBOX")))
    assert not settings - named
    described = entries(part(page("llamaswapd-units.7"), "SANDBOX"))
    assert {name for name in described if name.endswith("=")} == {
        f"{name}=" for name in settings - {"WorkingDirectory"}
    }


@pytest.mark.parametrize("client", ["podman", "docker"])
def test_what_is_different_in_the_unit_of_a_container_has_an_entry(client: str) -> None:
    program = build(ModelConfig(id="m", cmd="server"), Host(version=252, directory="/")).settings
    contained = ModelConfig(id="m", **{client: Container(image="i")})
    settings = build(contained, Host(version=252, directory="/")).settings
    different = {name for name, values in settings.items() if program.get(name) != values} - {"LogExtraFields"}
    described = entries(part(page("llamaswapd-units.7"), "CONTAINERS"))
    assert {name.removesuffix("=") for name in described} >= different


# ---- examples ------------------------------------------------------------------------------------------------------

# An example is marked by the info string of its fence in Markdown, by the comment before its fence in scdoc.
MARKED = {
    ".md": re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE),
    ".scd": re.compile(r"^; yaml\n```\n(.*?)^```$", re.DOTALL | re.MULTILINE),
}


def examples() -> list[tuple[Path, str]]:
    return [(file, text) for file in [README, *PAGES] for text in MARKED[file.suffix].findall(file.read_text())]


@pytest.mark.parametrize(("file", "text"), [pytest.param(*found, id=found[0].name) for found in examples()])
def test_every_example_loads_without_a_warning(file: Path, text: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    loaded = load([config], environ={}, credentials=dict.fromkeys(names_in([text]), "x"))
    assert not loaded.warnings
    assert loaded.config.models


def test_every_configuration_is_marked_as_an_example() -> None:
    for file in [README, *PAGES]:
        unmarked = MARKED[file.suffix].sub("", file.read_text())
        assert not re.search(r"^\s*models:$", unmarked, re.MULTILINE), file.name
    assert {README.name, "llamaswapd.yaml.5.scd", "llamaswapd-units.7.scd"} <= {file.name for file, _ in examples()}


# ---- the pages as such ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", PAGES, ids=lambda source: source.name)
def test_every_page_can_be_built(source: Path) -> None:
    if shutil.which("scdoc") is None:
        pytest.skip("scdoc is not installed")
    done = subprocess.run(["scdoc"], input=source.read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    name, section, _ = source.name.rsplit(".", 2)
    assert re.search(rf'^\.TH "{re.escape(name)}" "{section}"', done.stdout.decode(), re.MULTILINE)


def test_every_reference_between_pages_leads_somewhere() -> None:
    present = {source.name for source in PAGES}
    for file in PAGES:
        for name, section in re.findall(r"\*(llamaswapd[a-z.-]*)\*\((\d)\)", file.read_text()):
            assert f"{name}.{section}.scd" in present, file.name


def test_the_readme_links_to_what_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README.read_text())
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
