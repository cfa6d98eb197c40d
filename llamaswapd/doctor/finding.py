"""What a check says: one line, with the remedy if there is something to be done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

# `unseen`: whoever asks may not look there, or nothing answered; it may be well or not.
Level = Literal["ok", "unseen", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    level: Level
    thing: str  # what was looked at, with the model it belongs to: `qwen: /srv/models/x.gguf`
    value: str  # what it is
    remedy: str = ""  # a command wherever there is one

    def __str__(self) -> str:
        return f"{self.level:8} {self.thing}: {self.value}" + (f"; {self.remedy}" if self.remedy else "")


def ok(thing: str, value: str) -> Finding:
    return Finding("ok", thing, value)


def warning(thing: str, value: str, remedy: str) -> Finding:
    return Finding("warning", thing, value, remedy)


def problem(thing: str, value: str, remedy: str) -> Finding:
    return Finding("problem", thing, value, remedy)


def unseen(thing: str, value: str, remedy: str = "") -> Finding:
    return Finding("unseen", thing, value, remedy)


_NOUNS: Mapping[Level, tuple[str, str]] = {
    "problem": ("problem", "problems"),
    "warning": ("warning", "warnings"),
    "unseen": ("thing unseen", "things unseen"),
}


def summary(findings: Iterable[Finding]) -> str:
    """Return the last line: how many of what, `2 problems, 1 warning`."""
    levels = [finding.level for finding in findings]
    counts = ((levels.count(level), nouns) for level, nouns in _NOUNS.items())
    return (
        ", ".join(f"{count} {one if count == 1 else many}" for count, (one, many) in counts if count) or "all is well"
    )


def as_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [asdict(finding) for finding in findings]
