"""The command line: parse flags, pick a verb, say how it ended.

llama-swap's flags work in both spellings (`-config`, `--config`, `-config=F`); its rules are Go's flag package. Exit
codes: 0 done, 1 the configuration, the address or systemd refused, 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence, Sized
from pathlib import Path

from llamaswapd import __version__
from llamaswapd.config import credentials
from llamaswapd.config.jsonschema import json_schema
from llamaswapd.config.load import load
from llamaswapd.errors import ConfigError, Error, UsageError

USAGE = """\
llamaswapd -config FILE [-config-dir DIR] [-listen ADDRESS] [OPTIONS]
       llamaswapd check [-strict] [-credentials DIR] FILE...
       llamaswapd schema
       llamaswapd units [-config FILE] [-credentials DIR] [MODEL...]
       llamaswapd doctor [-json] [-config FILE] [-config-dir DIR] [MODEL...]
       llamaswapd private [-instance NAME] -- COMMAND...
       llamaswapd launcher [-config FILE] [-config-dir DIR]"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = VERBS.get(arguments[0]) if arguments else None
    try:
        return _printed(verb, arguments[1:]) if verb is not None else serve(arguments)
    except Error as error:
        print(error, file=sys.stderr)
        return 1


def _printed(verb: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a verb whose reader, such as head(1), may stop reading; that ends it without a word."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all letters of a configuration
    try:
        status = verb(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return 1
    return status


def serve(arguments: Sequence[str]) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT."""
    options, unknown = flag_parser().parse_known_args(go_flags(arguments))
    if unknown:
        flag_parser().error(f"flag provided but not defined: {unknown[0]}")
    if options.version:
        commit, built = os.environ.get("LLAMASWAPD_COMMIT", "unknown"), os.environ.get("LLAMASWAPD_BUILT", "unknown")
        print(f"version: {__version__} ({commit}), built at {built}")
        return 0
    if bool(options.tls_cert_file) != bool(options.tls_key_file):
        raise UsageError("both -tls-cert-file and -tls-key-file must be provided for TLS")
    if options.manager == "launcher":
        refuse_files_of_the_launchers(options)
    elif not options.config and not options.config_dir:
        raise UsageError("at least one of -config or -config-dir must be provided")

    from llamaswapd import loop  # check and units need neither the bus nor the front end
    from llamaswapd.daemon import Options, run

    return loop.run(
        run(
            Options(
                files=(Path(options.config),) if options.config else (),
                config_dir=Path(options.config_dir) if options.config_dir else None,
                listen=options.listen or (":8443" if options.tls_cert_file else ":8080"),
                tls=(options.tls_cert_file, options.tls_key_file) if options.tls_cert_file else None,
                watch_config=options.watch_config,
                manager=options.manager,
                instance=options.instance,
            )
        )
    )


def refuse_files_of_the_launchers(options: argparse.Namespace) -> None:
    """Raise UsageError for flags that have no meaning where the launcher reads the configuration."""
    for flag in ("config", "config_dir", "watch_config"):
        if getattr(options, flag):
            raise UsageError(
                f"-{flag.replace('_', '-')} cannot be used with -manager launcher, as the launcher reads the files; "
                "which ones is said in llamaswapd-launcher.service: systemctl edit llamaswapd-launcher.service"
            )
    if options.instance:
        raise UsageError("-instance cannot be used with -manager launcher: it serves one daemon, which has no name")


def check(arguments: Sequence[str]) -> int:
    """Print the verdict on configuration files and every problem; exit status 1 if there is one."""
    parser = parser_of(check)
    parser.add_argument("file", nargs="*", type=Path)
    parser.add_argument("-config", "--config", type=Path, action="append", default=[])
    parser.add_argument("-config-dir", "--config-dir", type=Path)
    parser.add_argument("-credentials", "--credentials", type=Path, metavar="DIR", help=CREDENTIALS_HELP)
    parser.add_argument("-strict", "--strict", action="store_true", help="take unknown keys for problems")
    options = parser.parse_args(arguments)
    secrets = credentials_in(options.credentials)
    try:
        loaded = load(options.config + options.file, options.config_dir, is_strict=options.strict, credentials=secrets)
    except ConfigError as error:
        for warning in error.warnings:
            print(f"warning: {warning}")
        for problem in error.problems:
            print(f"error: {problem}")
        print(f"not usable: {counted(error.problems, 'problem')}")
        return 1
    for warning in loaded.warnings:
        print(f"warning: {warning}")
    models, warnings = counted(loaded.config.models, "model"), counted(loaded.warnings, "warning")
    print(f"usable: {models}, {warnings}" if loaded.warnings else f"usable: {models}")
    return 0


def schema(arguments: Sequence[str]) -> int:
    """Print the JSON schema of configuration files, for editors."""
    parser_of(schema).parse_args(arguments)
    print(json.dumps(json_schema(), indent=2))
    return 0


def counted(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def credentials_in(directory: Path | None) -> dict[str, str]:
    """Return the credentials of a directory, without one those of the service that we are."""
    if directory is None:
        return credentials.given(os.environ)
    if not directory.is_dir():
        raise UsageError(f"-credentials {directory} is no directory; name one that has a file for each credential")
    return credentials.read(directory)


def units(arguments: Sequence[str]) -> int:
    """Print the unit that each model would get, in unit-file syntax."""
    parser = parser_of(units)
    parser.add_argument("model", nargs="*", help="model ids or aliases; none: all")
    parser.add_argument("-config", "--config", type=Path, action="append", default=[])
    parser.add_argument("-config-dir", "--config-dir", type=Path)
    parser.add_argument("-credentials", "--credentials", type=Path, metavar="DIR", help=CREDENTIALS_HELP)
    parser.add_argument("-manager", "--manager", choices=MANAGERS)
    parser.add_argument("-instance", "--instance", default="")
    options = parser.parse_args(arguments)

    from llamaswapd.systemd.connect import dry_host
    from llamaswapd.systemd.unit import build, check_instance, to_unit_file

    if options.instance:
        check_instance(options.instance)
    secrets = credentials.masked(credentials_in(options.credentials))
    config = load(options.config, options.config_dir, credentials=secrets).config
    host = asyncio.run(dry_host(options.manager or config.manager, options.instance))
    for number, name in enumerate(options.model or config.models):
        model = config.resolve(name)
        if model is None:
            raise UsageError(f'no model "{name}" in the configuration; it has: {", ".join(config.models)}')
        print(("\n" if number else "") + to_unit_file(build(model, host)), end="")
    return 0


PACKAGED = Path("/etc/llamaswapd/config.yaml"), Path("/etc/llamaswapd/models.d")  # what the launcher reads


def doctor(arguments: Sequence[str]) -> int:
    """Look for what keeps models from running here, and name the remedy; exit status 1 if there is a problem."""
    parser = parser_of(doctor)
    parser.add_argument("model", nargs="*", help="model ids or aliases; none: all")
    parser.add_argument("-config", "--config", type=Path, action="append", default=[])
    parser.add_argument("-config-dir", "--config-dir", type=Path)
    parser.add_argument("-manager", "--manager", choices=MANAGERS, help="which systemd runs the models")
    parser.add_argument("-json", "--json", action="store_true", help="print a list of objects, for programs")
    options = parser.parse_args(arguments)

    from llamaswapd.doctor.examine import Wanted, examine
    from llamaswapd.doctor.finding import as_json, summary
    from llamaswapd.doctor.machine import Machine

    files, folder = options.config, options.config_dir
    if not files and not folder:
        files, folder = [PACKAGED[0]], PACKAGED[1] if PACKAGED[1].is_dir() else None
    is_packaged = {*files, folder} <= {*PACKAGED, None}
    wanted: Wanted | None = options.manager or ("launcher" if is_packaged else None)
    findings = []
    for finding in examine(Machine(), wanted, files, folder, options.model):
        findings.append(finding)
        if not options.json:
            print(finding, flush=True)
    print(json.dumps(as_json(findings), indent=2) if options.json else summary(findings))
    return 1 if any(finding.level == "problem" for finding in findings) else 0


def private(arguments: Sequence[str]) -> int:
    """Run a command, such as `systemctl --user`, inside the private manager of a running daemon."""
    parser = parser_of(private)
    parser.add_argument("-instance", "--instance", default="")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND...")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("name a command, for example: llamaswapd private -- systemctl --user status")

    from llamaswapd.systemd.enter import inside
    from llamaswapd.systemd.service import runtime_path

    argv = inside(runtime_path(options.instance), command)
    sys.stdout.flush()
    os.execv(argv[0], argv)


def launcher(arguments: Sequence[str]) -> int:
    """Start units for a daemon that may not, by way of the system's bus; as root, from llamaswapd-launcher.service."""
    parser = parser_of(launcher)
    parser.add_argument("-config", "--config", type=Path, action="append", default=[])
    parser.add_argument("-config-dir", "--config-dir", type=Path)
    options = parser.parse_args(arguments)
    if not options.config and not options.config_dir:
        raise UsageError("at least one of -config or -config-dir must be provided")

    from llamaswapd.launcher.service import run

    return asyncio.run(run(options.config, options.config_dir))


def parser_of(verb: Callable[..., int]) -> argparse.ArgumentParser:
    """Return a parser for a verb's flags, which has none but `-help` so far."""
    name = f"llamaswapd {verb.__name__}"
    parser = argparse.ArgumentParser(name, allow_abbrev=False, add_help=False, description=verb.__doc__)
    parser.add_argument("-h", "-help", "--help", action="help", help="print this text and exit")
    return parser


VERBS = {"check": check, "schema": schema, "units": units, "doctor": doctor, "private": private, "launcher": launcher}
CREDENTIALS_HELP = "directory of the files that ${env.NAME} may stand for, such as /etc/llamaswapd/credentials"
MANAGERS = ("auto", "system", "user", "private", "launcher")

BOOLEAN_FLAGS = ("watch-config", "version")
GO_TRUE = ("1", "t", "T", "true", "TRUE", "True")  # strconv.ParseBool
GO_FALSE = ("0", "f", "F", "false", "FALSE", "False")


def flag_parser() -> argparse.ArgumentParser:
    """Return the parser of llama-swap's flags and ours. Positional arguments are ignored, as there."""
    parser = argparse.ArgumentParser(
        "llamaswapd",
        usage=USAGE,
        allow_abbrev=False,
        add_help=False,
        description="Serve all models of a machine at one /v1 address; start and swap them as systemd units.",
    )
    flag = parser.add_argument
    flag("-config", "--config", metavar="FILE", help="configuration file")
    flag("-config-dir", "--config-dir", metavar="DIR", help="directory of further files, *.yml and *.yaml")
    flag("-listen", "--listen", metavar="ADDRESS", help="host:port or :port (default :8080, with TLS :8443)")
    flag("-tls-cert-file", "--tls-cert-file", metavar="FILE", help="certificate, PEM")
    flag("-tls-key-file", "--tls-key-file", metavar="FILE", help="its key, PEM")
    flag("-watch-config", "--watch-config", action="store_true", help="reload when a configuration file changes")
    flag(
        "-manager", "--manager", choices=MANAGERS, help="which systemd runs the models (default: the file's, else auto)"
    )
    flag(
        "-instance",
        "--instance",
        metavar="NAME",
        default="",
        help="name of this daemon, where several run side by side",
    )
    flag("-version", "--version", action="store_true", help="print the version and exit")
    flag("-h", "-help", "--help", action="help", help="print this text and exit")
    return parser


def go_flags(arguments: Sequence[str]) -> list[str]:
    """Return the flags in argparse's spelling, by the rules of Go's flag package.

    Flags end at `--` and at the first argument that is none; `-flag=false` takes a boolean flag back.
    """
    flags: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--", "-") or not argument.startswith("-"):
            break
        name, equals, value = argument.partition("=")
        if name.lstrip("-") not in BOOLEAN_FLAGS:
            flags.append(argument)
            if not equals and name.lstrip("-") not in ("h", "help"):
                flags.extend(itertools.islice(rest, 1))
        elif not equals or value in GO_TRUE:
            flags.append(name)
        elif value not in GO_FALSE:
            flag_parser().error(f'invalid boolean value "{value}" for {name}; write true or false')
    return flags


if __name__ == "__main__":
    sys.exit(main())
