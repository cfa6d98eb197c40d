"""The pages below docs/, and the examples in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))

FENCED = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    page: Path
    language: str  # the first word behind the fence
    what: str  # the others, "" if there are none
    text: str

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.language}"


def examples(page: Path) -> list[Example]:
    """Return the fenced examples of a page, in their order."""
    found = FENCED.findall(page.read_text())
    return [Example(page, *(info.partition(" ")[::2]), text) for info, text in found]


def of_language(language: str) -> list[Example]:
    return [example for page in PAGES for example in examples(page) if example.language == language]


def the(page: str, language: str, what: str = "") -> str:
    """Return the text of the one example of a page that is of this language and called so."""
    (found,) = (
        example.text
        for example in examples(ROOT / "docs" / f"{page}.md")
        if (example.language, example.what) == (language, what)
    )
    return found
