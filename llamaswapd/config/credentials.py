"""Secrets that systemd hands to a service as files: `${env.NAME}` may stand for one of them.

See systemd.exec(5), "Credentials". What may become of them is told in `references`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from llamaswapd.errors import ConfigError, Problem

# A file's name without its prefix gives the name; where two files give the same one, the later of these wins.
# ImportCredential=llamaswapd.* brings the first, LoadCredential=env:DIRECTORY the second.
_PREFIXES = ("llamaswapd.", "env_", "")
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def read(directory: str | Path) -> dict[str, str]:
    """Return the value of each credential in a directory by its name, without the newline at its end.

    Bytes that are no UTF-8 are kept as surrogates: a file that nobody refers to may hold anything. Nothing is in "" and
    in a directory that is not there. Raises ConfigError for what cannot be read. Blocks.
    """
    try:
        if not directory or not Path(directory).exists():
            return {}
        files = [file for file in sorted(Path(directory).iterdir()) if file.is_file()]
        return {
            name: file.read_bytes().decode(errors="surrogateescape").removesuffix("\n")
            for prefix in _PREFIXES
            for file in files
            if file.name.startswith(prefix) and _NAME.fullmatch(name := file.name[len(prefix) :])
        }
    except OSError as error:
        where = error.filename or directory
        raise ConfigError([Problem("", "", f"cannot read the credentials: {where}: {error.strerror}")]) from None


def given(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the credentials of the service that we are, none if we are no service. As `read`."""
    return read(environ.get("CREDENTIALS_DIRECTORY", ""))


def masked(credentials: Mapping[str, str]) -> dict[str, str]:
    """Return the same credentials, for a configuration that is printed."""
    return dict.fromkeys(credentials, "***")
