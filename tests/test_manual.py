"""The manual pages and the README say what the program does: every key, flag and setting, and examples that load."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import pytest
from aiohttp import web

from llamaswapd import __main__ as command_line
from llamaswapd.config import schema
from llamaswapd.config.decode import fields_by_key
from llamaswapd.config.environment import names_in
from llamaswapd.config.jsonschema import sections_within
from llamaswapd.config.load import load
from llamaswapd.config.schema import WITHOUT_EFFECT, CommaSeparated, Config, Container, ModelConfig, Section, Words
from llamaswapd.config.settings import SETTINGS
from llamaswapd.core.routing import MODEL_ROUTES
from llamaswapd.http import app
from llamaswapd.systemd.sandbox import defaults
from llamaswapd.systemd.unit import Host, build, to_unit_file

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
    found = re.search(rf"^# {re.escape(heading)}\n(.*?)(?=^# [A-Z, ]+$|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"there is no heading {heading}"
    return found[1]


def entries(text: str) -> dict[str, str]:
    """Return the entries, by each of the names in bold in the line above the indented text."""
    found = re.findall(r"^(\*.+)\n(\t.*\n(?:(?:\t.*)?\n)*)", text, re.MULTILINE)
    return {name: " ".join(body.split()) for head, body in found for name in re.findall(r"\*(.+?)\*", head)}


def plain(text: str) -> str:
    """Return text without scdoc's marks and escapes."""
    return re.sub(r"(?<!\\)\*|\\(?=[*_#])", "", text)


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


@pytest.mark.parametrize(
    ("path", "setting"),
    [
        ("cmd", "systemd.service(5), ExecStart="),
        ("cmdStop", "systemd.service(5), ExecStop="),
        ("podman", "systemd.service(5), ExecStart="),
        ("unloadTimeout", "systemd.service(5), TimeoutStopSec="),
        ("env", "systemd.exec(5), EnvironmentFile="),
        ("env", "systemd.exec(5), Environment="),
        ("systemd", "systemd.exec(5)"),
    ],
)
def test_a_key_that_becomes_a_setting_names_it_and_its_page(path: str, setting: str) -> None:
    entry = plain(entries(part(page("llamaswapd.yaml.5"), "MODEL KEYS"))[path])
    assert all(word in entry for word in setting.split(", "))


# ---- the command line ----------------------------------------------------------------------------------------------


def flags_of(verb: object) -> set[str]:
    """Return a verb's own flags, with one dash."""
    return set(re.findall(r'add_argument\("(-[a-z-]+)"', inspect.getsource(verb)))  # type: ignore[arg-type]


def flags_in(text: str) -> set[str]:
    """Return the words in bold that are flags, with one dash; `--` begins a command."""
    return set(re.findall(r"\*(-[a-z][a-z-]*)", text))


def flags_of_daemon() -> set[str]:
    named = {flag for action in command_line.flag_parser()._actions for flag in action.option_strings}
    return {flag for flag in named if not flag.startswith("--")}


def test_every_flag_has_an_entry() -> None:
    assert set(entries(part(page("llamaswapd.8"), "OPTIONS"))) == flags_of_daemon()


def test_every_verb_has_an_entry_with_its_flags_and_no_others() -> None:
    text = part(page("llamaswapd.8"), "VERBS")
    described = {name: body for name, body in entries(text).items() if not name.startswith("-")}
    assert set(described) == set(command_line.VERBS)
    flags = {name: flags_in(body) for name, body in described.items()}
    # What a flag of the daemon is to one verb's work is said there.
    flags["launcher"].discard("-manager")
    assert flags == {name: flags_of(verb) for name, verb in command_line.VERBS.items()}


def test_the_synopsis_has_every_verb_and_none_but_its_flags() -> None:
    lines = [line for line in part(page("llamaswapd.8"), "SYNOPSIS").splitlines() if line.startswith("*llamaswapd*")]
    verbs = [re.match(r"\*llamaswapd\* \*([a-z]+)\*", line) for line in lines]
    assert {found[1] for found in verbs if found} == set(command_line.VERBS)
    for line, found in zip(lines, verbs, strict=True):
        known = flags_of(command_line.VERBS[found[1]]) if found else flags_of_daemon()
        assert flags_in(line) <= known, line


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
@pytest.mark.parametrize("verb", command_line.VERBS)
def test_every_verb_explains_its_flags(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main([verb, flag])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(known in shown for known in flags_of(command_line.VERBS[verb]))


def test_every_manager_is_named() -> None:
    entry = entries(part(page("llamaswapd.8"), "OPTIONS"))["-manager"]
    described = entries(part(page("llamaswapd-units.7"), "MANAGERS"))
    for manager in command_line.MANAGERS:
        assert f"*{manager}*" in entry
        assert manager in described or manager == "launcher"


def test_every_variable_that_is_read_has_an_entry() -> None:
    read = re.compile(r"""(?:os\.)?environ(?:\.get|\.pop)?[(\[]"([A-Z_]+)\"""")
    sources = [file.read_text() for file in (ROOT / "llamaswapd").rglob("*.py")]
    named = set(re.findall(r"\*\$([A-Z_]+)\*", part(page("llamaswapd.8"), "ENVIRONMENT")))
    used = {name for text in sources for name in read.findall(text)}
    assert named >= used
    assert {name for name in named if not any(f'"{name}"' in text for text in sources)} == set()


def test_every_path_of_the_http_interface_exists() -> None:
    routes = {(method, path) for method, path in MODEL_ROUTES} | routes_of_app()
    text = part(page("llamaswapd.8"), "HTTP INTERFACE")
    described = re.findall(r"_(GET|POST|PUT) (/[^_]*(?:_[^_\s]+)*)_", text)
    assert len(described) > 15
    for method, path in described:
        assert (method, re.sub(r"/(MODEL|ID)\b", "/*", path)) in routes, path
    for path in re.findall(r"_(/v1/[a-z/]+)_", text):
        assert ("POST", path) in routes


def routes_of_app() -> set[tuple[str, str]]:
    """Return method and path of everything that is answered beside models, with `*` for what varies."""
    nobody = cast(Any, type("Nobody", (), {"__getattr__": lambda self, name: None})())
    tables = (app.api_routes(nobody, nobody), app.activity_routes(nobody), app.machine_routes(nobody, nobody))
    routes = [route for table in (*tables, app.log_routes(nobody)) for route in table]
    found = [(route.method, route.path) for route in routes if isinstance(route, web.RouteDef)]
    return {(method, re.sub(r"\{.*\}", "*", path)) for method, path in found} | {("GET", "/api/events")}


def test_the_files_are_those_that_the_package_brings() -> None:
    listed = (ROOT / "packaging" / "debian" / "llamaswapd.install").read_text()
    for path in re.findall(r"_(/usr/[^_\s]+)_", part(page("llamaswapd.8"), "FILES")):
        name, folder = os.path.basename(path), os.path.dirname(path).removeprefix("/")
        assert folder in listed or "/doc/" in path, path
        assert list(ROOT.glob(f"units/**/{name}")) or list(ROOT.glob(f"packaging/**/{name}")), path


# ---- units ---------------------------------------------------------------------------------------------------------


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


def test_every_value_of_the_sandbox_is_told() -> None:
    described = entries(part(page("llamaswapd-units.7"), "SANDBOX"))
    for name, values in defaults({"video", "render", "llamaswapd-model"}).items():
        entry = plain(described[f"{name}="])
        for word in " ".join(values).replace("%i", "ID").split():
            assert word.lstrip("~-") in entry, f"{name}={word}"


def test_nothing_is_told_of_settings_that_do_not_exist() -> None:
    models = {*SETTINGS, "RemainAfterExit"}
    # Of units of ours that are no models: services, sockets.
    ours = {"Accept", "FileDescriptorName", "ListenStream", "Service", "WatchdogSec"}
    for file in PAGES:
        text = file.read_text()
        named = set(re.findall(r"\*([A-Z]+[a-z][A-Za-z]*)=", text))
        assert named - models - ours == set(), file.name
    limits = part(page("llamaswapd-units.7"), "LIMITING")
    assert set(entries(limits)) <= models


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
KINDS = {"yaml", "sh", "unit", "unit of the example above", "output"}
FENCED = re.compile(r"(?:^; ([^\n]*)\n)?^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def fenced(file: Path, *kinds: str) -> list[str]:
    """Return the examples of a page as they are shown: in scdoc a backslash takes another before it."""
    return [text.replace("\\\\", "\\") for mark, text in FENCED.findall(file.read_text()) if mark in kinds]


def examples() -> list[tuple[Path, str]]:
    of_readme = [(README, text) for text in MARKED[".md"].findall(README.read_text())]
    return of_readme + [(file, text) for file in PAGES for text in fenced(file, "yaml")]


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


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_example_says_what_it_is_and_fits_a_terminal(file: Path) -> None:
    for kind, text in FENCED.findall(file.read_text()):
        assert kind in KINDS, text
        assert max(map(len, text.splitlines())) <= 100 if kind == "unit of the example above" else 96, text


def test_a_unit_that_is_shown_is_the_one_that_the_example_before_it_becomes(tmp_path: Path) -> None:
    (found,) = re.finditer(
        r"^; yaml\n```\n((?:(?!^```).)*)^```(?:(?!^; yaml).)*^; unit of the example above\n```\n(.*?)^```$",
        page("llamaswapd-units.7"),
        re.DOTALL | re.MULTILINE,
    )
    config = tmp_path / "config.yaml"
    config.write_text(found[1])
    (model,) = load([config], environ={}).config.models.values()
    host = Host(257, "/", environment={"PATH": "/usr/bin"}, find=lambda name: f"/usr/bin/{name}")
    assert found[2] == to_unit_file(build(model, host))


def test_every_unit_of_the_pages_is_a_drop_in_with_settings_that_exist() -> None:
    models = set(SETTINGS)
    for text in (text for file in PAGES for text in fenced(file, "unit")):
        path, section, *settings = text.replace("\\\n", " ").splitlines()
        assert re.fullmatch(r"# /etc/systemd/system/llamaswapd[a-z-]*\.(service|socket|slice)\.d/[a-z]+\.conf", path)
        assert section in ("[Service]", "[Socket]", "[Slice]")
        names = {setting.partition("=")[0] for setting in settings}
        assert names <= models | {"ListenStream", "FileDescriptorName"}


# What an example may call that is not ours; it is called, and does nothing.
OTHERS = ("curl", "journalctl", "systemctl", "systemd-cgls", "systemd-cgtop")
OURS = """\
#!/bin/sh
case "$1" in
check|units|schema) exec {python} -m llamaswapd "$@" ;;
doctor) shift; {python} -m llamaswapd doctor -manager private -config {etc}/config.yaml "$@" || [ $? = 1 ] ;;
private|-config) ;;
*) echo "no verb $1" >&2; exit 2 ;;
esac
"""


@pytest.mark.parametrize(
    ("file", "script"),
    [pytest.param(file, text, id=file.name) for file in PAGES for text in fenced(file, "sh")],
)
def test_every_example_for_a_shell_runs(file: Path, script: str, tmp_path: Path) -> None:
    """With the daemon's own verbs as they are, on the whole example of the manual, and nothing behind the others."""
    programs, etc = tmp_path / "bin", tmp_path / "etc"
    for folder in (programs, etc, etc / "models.d", etc / "credentials", tmp_path / "units"):
        folder.mkdir()
    example = MARKED[".scd"].findall(part(page("llamaswapd.yaml.5"), "EXAMPLE"))[0]
    for config in (etc / "config.yaml", tmp_path / "config.yaml"):
        config.write_text(example)
    for name in names_in([example]):
        (etc / "credentials" / name).write_text("secret\n")
    for name in OTHERS:
        (programs / name).symlink_to("/bin/true")
    (programs / "llamaswapd").write_text(OURS.format(python=sys.executable, etc=etc))
    (programs / "llamaswapd").chmod(0o755)
    for text, path in (("/etc/llamaswapd", etc), ("/run/systemd/system", tmp_path / "units")):
        script = script.replace(text, str(path))
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "CREDENTIALS_DIRECTORY": ""}
    environment["CREDENTIALS_DIRECTORY"] = str(etc / "credentials")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert not done.stderr


# ---- the pages as such ---------------------------------------------------------------------------------------------


def built(source: Path) -> str:
    """Return a page in roff, as it is installed."""
    if shutil.which("scdoc") is None:
        pytest.skip("scdoc is not installed")
    done = subprocess.run([ROOT / "man" / "build", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("source", PAGES, ids=lambda source: source.name)
def test_every_page_can_be_built(source: Path) -> None:
    name, section, _ = source.name.rsplit(".", 2)
    assert re.search(rf'^\.TH "{re.escape(name.upper())}" "{section}"', built(source), re.MULTILINE)
    assert rf"{name.replace('-', chr(92) + '-')} \- " in built(source)  # where whatis(1) looks


@pytest.mark.parametrize(
    "command", [["mandoc", "-T", "lint"], ["groff", "-man", "-Tutf8", "-ww", "-z"]], ids=lambda command: command[0]
)
@pytest.mark.parametrize("source", PAGES, ids=lambda source: source.name)
def test_nobody_has_anything_to_say_of_a_page(source: Path, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, input=built(source), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("source", PAGES, ids=lambda source: source.name)
def test_every_example_is_shown_as_it_is_written(source: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    command = ["groff", "-man", "-Tutf8", "-rLL=150n", "-P-bcu"]
    done = subprocess.run(command, input=built(source), capture_output=True, text=True, check=True)
    shown = "\n".join(line.strip() for line in done.stdout.splitlines())
    for text in fenced(source, *KINDS):
        assert "\n".join(line.strip() for line in text.splitlines()) in shown, text


def test_every_reference_between_pages_leads_somewhere() -> None:
    present = {source.name for source in PAGES}
    for file in PAGES:
        for name, section in re.findall(r"\*(llamaswapd[a-z.-]*)\*\((\d)\)", file.read_text()):
            assert f"{name}.{section}.scd" in present, file.name


def test_the_readme_links_to_what_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README.read_text())
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
