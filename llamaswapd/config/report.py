"""What is wrong with a configuration, gathered while it is read."""

from __future__ import annotations

from llamaswapd.config.tree import Map, Node, Path, Seq, dotted
from llamaswapd.errors import ConfigError, Problem


class Report:
    """Errors and warnings in the order in which they are found.

    `root` is the tree that paths lead into; it tells which file a problem is in.
    """

    def __init__(self) -> None:
        self.root: Node = Map()
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, path: Path, message: str, file: str = "") -> None:
        self.errors.append(Problem(file or self._file(path), dotted(path), message))

    def warn(self, path: Path, message: str) -> None:
        self.warnings.append(Problem(self._file(path), dotted(path), message))

    def raise_errors(self) -> None:
        if self.errors:
            raise ConfigError(self.errors)

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
