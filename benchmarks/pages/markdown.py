"""A report as Markdown for a pull request or a job summary: conclusion and key figures first, the rest folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.measurements import ChangedAnswer
from benchmarks.pages import contents, tables
from benchmarks.pages.conditions import conditions, machine, method
from benchmarks.pages.escaping import code, escaped, markdown_table
from benchmarks.pages.formatting import answer, clipped, number
from benchmarks.pages.headline import conclusion
from benchmarks.pages.table import Table
from benchmarks.report import Report

MOST_BYTES = 1_000_000
"""GitHub shows no summary of 1 MiB or more, and other steps of the same job may write to it too."""
MOST_TEXT = 300
"""Characters of a row's text; report.json has all of it."""


def render(report: Report) -> str:
    """Render the whole report, or as much of it as a summary may hold."""
    parts = list(_first(report))
    size, left_out = sum(map(_bytes, parts)), []
    for title, content in _folded(report):
        part = f"<details>\n<summary>{escaped(title)}</summary>\n\n{content}\n\n</details>"
        if size + _bytes(part) > MOST_BYTES:
            left_out.append(title)
            continue
        size += _bytes(part)
        parts.append(part)
    if left_out:
        parts.append(f"Too long to be shown here, see report.json: {escaped(', '.join(left_out))}.")
    return "\n\n".join(parts) + "\n"


def _bytes(part: str) -> int:
    return len(part.encode()) + 2


def _first(report: Report) -> Iterator[str]:
    found = conclusion(report)
    yield f"# Benchmark of {escaped(report.name)}"
    yield {True: "✅", False: "❌", None: "ℹ️"}[found.passed] + f" **{escaped(found.text)}**"
    failed = [gate for gate in report.gates if not gate.passed]
    if failed:
        yield "\n".join(f"* {code(gate.expression)}: {escaped(str(gate))}" for gate in failed)
    if found.notes:
        yield "\n".join(f"* the baseline: {escaped(note)}" for note in found.notes)
    if report.regressions:
        yield _whole(tables.regressions(report))
    yield _whole(contents.glance(report))
    commit = report.environment.commit or "unknown"
    yield escaped(f"{report.created} · commit {commit} · {machine(report)}")


def _folded(report: Report) -> Iterator[tuple[str, str]]:
    if report.gates:
        yield "Gates", _whole(tables.gates(report))
    for table in contents.details(report):
        yield table.title, _whole(table)
    for name, changed in list(tables.changed_answers(report).items())[:1]:
        yield f"Answers that changed most: {name}", _whole(_changed_answers(changed))
    rows = [(name, clipped(value, MOST_TEXT)) for name, value in conditions(report)]
    yield "Conditions", f"{escaped(method(report))}\n\n{_table(['', ''], rows)}"


def _changed_answers(rows: Sequence[ChangedAnswer]) -> Table:
    return Table(
        name="changed",
        title="",
        head=["row", "differs by", "texts", "right", "original", "now"],
        rows=[
            [
                str(one.row),
                number(one.difference, ".3g"),
                clipped(" / ".join(one.texts.values()), MOST_TEXT),
                *(clipped(answer(part), MOST_TEXT) for part in (one.reference, one.original, one.answer)),
            ]
            for one in rows
        ],
    )


def _whole(table: Table) -> str:
    notes = "".join(f"\n\n{escaped(note)}" for note in table.notes if note)
    return _table(table.head, table.rows, words=table.words) + notes


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 2) -> str:
    return markdown_table(head, [[code(row[0]), *map(escaped, row[1:])] for row in rows], words=words)
