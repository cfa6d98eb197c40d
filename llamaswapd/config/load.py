"""From files to the configuration: the one place that reads them.

The steps stand in `load` in their order; each is a pure function in a module of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamaswapd.config import credentials as secrets
from llamaswapd.config import dialect, environment, macros, references
from llamaswapd.config.decode import decode, known_keys
from llamaswapd.config.effective import effective
from llamaswapd.config.fingerprint import fingerprint
from llamaswapd.config.merge import merge
from llamaswapd.config.prepare import prepare
from llamaswapd.config.report import Report, reason
from llamaswapd.config.schema import Config
from llamaswapd.config.store import check_store
from llamaswapd.config.tree import Map, is_null
from llamaswapd.config.validate import validate
from llamaswapd.errors import ConfigError, Problem


@dataclass(frozen=True)
class Loaded:
    config: Config
    warnings: tuple[Problem, ...]


def load(
    files: Sequence[str | Path],
    config_dir: str | Path | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    is_strict: bool = False,
    ports: Mapping[str, int] = {},
    credentials: Mapping[str, str] | None = None,
    defers: bool = False,
    checks_store: bool = True,
    fingerprint_key: bytes = b"",
) -> Loaded:
    """Return the configuration that the files make together, and what is odd about it.

    Raises ConfigError with every problem that can be seen at once; `is_strict` makes unknown keys problems. `ports` are
    those of running units by model id: each stays with its model if that still uses one, and no other model gets it.
    `credentials` are those of the service in which we run if they are not given. With `defers` a variable that is not
    known may be one of the half that serves requests: where that needs it, the reference stays (`wire`).
    `checks_store` looks whether we may write the activity's file. `fingerprint_key` makes the models' fingerprints
    nobody else's.
    """
    report = Report(is_strict=is_strict)
    if credentials is None:
        credentials = secrets.given(environ)
    parsed = [_parsed(path, environ, credentials, report, defers=defers) for path in sources(files, config_dir)]
    report.raise_errors(beyond_missing=True)
    root = merge([source for source in parsed if source is not None], report)
    report.raise_errors(beyond_missing=True)
    report.root = root = prepare(root)
    expanded = macros.expand(root, known_keys(Config), Config().start_port, report, ports)
    root = references.resolved(expanded.root, known_keys(Config), credentials, report, defers=defers)
    config = _decoded(root, expanded.ports, report)
    validate(config, root, report)
    if checks_store:
        check_store(config, report)
    report.raise_errors()
    return Loaded(_with_fingerprints(effective(config), fingerprint_key), tuple(report.warnings))


def sources(files: Sequence[str | Path], config_dir: str | Path | None = None) -> list[Path]:
    """Return the files to read, in order: those given, then `*.yml` and `*.yaml` of the directory by name."""
    given = [Path(file) for file in files]
    if config_dir is None:
        if not given:
            raise _unusable("at least one of -config or -config-dir must be provided")
        return given
    try:
        entries = sorted(Path(config_dir).iterdir())
    except OSError as error:
        raise _unusable(f"-config-dir {config_dir}: open {config_dir}: {reason(error.errno)}") from None
    # Not path.is_dir(), which raises for some links; what cannot be looked at is said of by who reads it.
    found = [path for path in entries if path.name.endswith((".yml", ".yaml")) and not os.path.isdir(path)]
    for file in given:
        if os.path.abspath(file) in map(os.path.abspath, found):
            raise _unusable(f"-config path {file} is also present in -config-dir {config_dir}; remove it from one")
    if not given + found:
        raise _unusable(f"no configuration sources found: {config_dir} holds no *.yml or *.yaml")
    return given + found


def _unusable(message: str) -> ConfigError:
    return ConfigError([Problem("", "", message)])


def _parsed(
    path: Path, environ: Mapping[str, str], credentials: Mapping[str, str], report: Report, *, defers: bool
) -> Map | None:
    """Return the tree of one file, environment expanded, None if it is empty or wrong."""
    file = str(path)
    try:
        source = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        what = "read" if error.errno == errno.EISDIR else "open"
        report.error((), f"failed to read config {file}: {what} {file}: {reason(error.errno)}", file)
        return None
    except UnicodeDecodeError as error:
        report.error((), f"failed to read config {file}: byte {error.start} is no UTF-8", file)
        return None
    # Twice, for values that refer to variables themselves. What is no YAML may become so by the first expansion.
    for unparsable in ([source], []):
        names = environment.names_in(_texts(source, otherwise=unparsable))
        later = {name for name in names if name in credentials or (defers and name not in environ)}
        source = environment.substitute(
            references.marked(source, later), [name for name in names if name not in later], environ, report, file
        )
    if report.has_missing(file) and not _texts(source, otherwise=[]):
        return None
    root = dialect.parse(source, file, report)
    return references.unmarked(root) if root is not None else None


def _texts(source: str, otherwise: list[str]) -> list[str]:
    """Return what a file says outside comments, `otherwise` where it is no YAML (yet)."""
    try:
        return list(dialect.texts(source))
    except dialect.Malformed:
        return otherwise


def _decoded(root: Map, ports: Mapping[str, int], report: Report) -> Config:
    """Return the typed configuration, each model and peer with its id, models with their ports and in byte order."""
    config = decode(Config, root, (), report)
    models = {}
    for id_ in sorted(config.models):  # code points sort as the bytes of UTF-8 do
        model = config.models[id_].having(id=id_, port=ports.get(id_))
        # A model given as null has not even the default proxy.
        models[id_] = model.having(proxy="") if is_null(root.get("models", id_)) else model
    return config.having(models=models, peers={id_: peer.having(id=id_) for id_, peer in config.peers.items()})


def _with_fingerprints(config: Config, key: bytes) -> Config:
    return config.having(
        models={id_: model.having(fingerprint=fingerprint(model, key)) for id_, model in config.models.items()}
    )
