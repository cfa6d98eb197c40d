"""What is wrong with a configuration, gathered while it is read."""

from __future__ import annotations

import os

from llamaswapd.config.tree import Map, Node, Path, Seq, dotted
from llamaswapd.errors import ConfigError, Problem


def reason(error: int | None) -> str:
    """Return what the system says of an error, by its number, beginning with a small letter as llama-swap has it."""
    said = os.strerror(error or 0)
    return said[0].lower() + said[1:]


class Report:
    """Errors and warnings in the order in which they are found.

    `root` is the tree that paths lead into; it tells which file a problem is in. A strict report takes unknown keys for
    errors.
    """

    def __init__(self, *, is_strict: bool = False) -> None:
        self._is_strict = is_strict
        self.root: Node = Map()
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self._missing: dict[str, Problem] = {}  # references that could not be replaced, and why

    def error(self, path: Path, message: str, file: str = "") -> None:
        if not (self._missing and "${env." in message):  # else it follows from what is missing
            self.errors.append(Problem(file or self._file(path), dotted(path), message))

    def missing(self, reference: str, message: str, file: str) -> None:
        """Note that a reference stays in the text; the rest of the file can be looked at all the same."""
        if reference not in self._missing:
            self._missing[reference] = Problem(file, "", message)
            self.errors.append(self._missing[reference])

    def has_missing(self, file: str) -> bool:
        """Tell whether some reference of a file stayed in its text."""
        return any(problem.file == file for problem in self._missing.values())

    def warn(self, path: Path, message: str) -> None:
        self.warnings.append(Problem(self._file(path), dotted(path), message))

    def unknown(self, path: Path, hint: str) -> None:
        """Note a key that means nothing."""
        hint = f"; {hint}" if hint else ""
        if self._is_strict:
            self.error(path, f"unknown key{hint}")
        else:
            self.warn(path, f"unknown key, ignored{hint}")

    def raise_errors(self, *, beyond_missing: bool = False) -> None:
        """Raise what there is; with `beyond_missing` only if there is more than references that stay in the text."""
        if len(self.errors) > (len(self._missing) if beyond_missing else 0):
            raise ConfigError(self.errors, self.warnings)

    def _file(self, path: Path) -> str:
        """Return the file of the node that a path leads to, or of the last one on the way that exists."""
        node = self.root
        for step in path:
            if isinstance(node, Map) and step in node.items:
                node = node.items[str(step)]
            elif isinstance(node, Seq) and isinstance(step, int) and step < len(node.items):
                node = node.items[step]
            else:
                break
        return node.origin.file
