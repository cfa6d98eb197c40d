"""What `${env.NAME}` stands for in the text of a file, before that text is read as YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from llamaswapd.config.report import Report

REFERENCE = re.compile(r"\$\{env\.([a-zA-Z_][a-zA-Z0-9_]*)\}")


def names_in(texts: Iterable[str]) -> list[str]:
    """Return the names of the environment variables that texts refer to, each once, in order."""
    return list(dict.fromkeys(name for part in texts for name in REFERENCE.findall(part)))


def substitute(source: str, names: Iterable[str], environ: Mapping[str, str], report: Report, file: str) -> str:
    """Put the values of these variables into the text of a file; other names stay, they stand in comments."""
    values: dict[str, str] = {}
    for name in names:
        value = environ.get(name)
        reference = f"${{env.{name}}}"
        if value is None:
            remedy = f"set it, take {reference} out, or if it is a credential: llamaswapd check -credentials DIRECTORY"
            report.missing(reference, f"environment variable '{name}' is not set; {remedy}", file)
        elif any(char in value for char in "\n\r\0"):
            what = "contains newlines or null bytes which are not allowed in YAML substitution"
            report.missing(reference, f"environment variable '{name}' {what}", file)
        else:
            # Right inside double quotes; elsewhere the doubling shows, and splitting a command undoes it again.
            values[name] = value.replace("\\", "\\\\").replace('"', '\\"')
    return REFERENCE.sub(lambda match: values.get(match[1], match[0]), source)
