"""The table of what faults have cost."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.stage import Row

HEADS = (
    "fault", "where", "runs", "requests", "failed", "ended with it", "retried", "pids changed", "orphans",
    "longest stall, ms", "verdict",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Return it as Markdown, with what was wrong below."""
    cells = [HEADS, tuple("---" for _ in HEADS), *map(cells_of, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADS))]
    lines = [" | ".join(map(str.ljust, line, widths)) for line in cells]
    problems = [f"- {row.fault}, {row.where}: {problem}" for row in rows for problem in row.problems]
    return "\n".join([*(f"| {line} |" for line in lines), *([""] if problems else []), *problems, ""])


def cells_of(row: Row) -> tuple[str, ...]:
    failed = ", ".join(f"{count} {kind}" for kind, count in sorted(row.failed.items())) or "0"
    numbers = (row.ended_with_it, row.retried, row.pids_changed, row.orphans, row.longest_stall_ms)
    verdict = "ok" if row.is_good else "FAILED"
    return (row.fault, row.where, str(row.runs), str(row.sent), failed, *map(str, numbers), verdict)
