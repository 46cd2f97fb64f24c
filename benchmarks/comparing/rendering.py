"""A comparison of two reports as a table for the terminal, as Markdown, and as an error."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pages.escaping import code, escaped, markdown_table
from benchmarks.verdicts import VERDICTS, FigureComparison, ReportComparison
from serving.errors import GateError
from serving.text_table import aligned

LISTED = 5
HEAD = ("", "figure", "before", "now", "change", "beside PyTorch", "allowed")


def to_text(compared: ReportComparison, *, everything: bool = False) -> str:
    """Write a comparison for the terminal."""
    rows = _rows(compared, everything)
    table = [*aligned([HEAD, *rows], left=(0, 1, 6)), ""] if rows else []
    heading = [f"before: {compared.before}", f"now:    {compared.now}", *(f"note: {note}" for note in compared.remarks)]
    return "\n".join([*heading, "", *table, compared.summary])


def to_markdown(compared: ReportComparison, *, everything: bool = False) -> str:
    """Write a comparison for a pull request."""
    items = [("before", compared.before), ("now", compared.now), *(("note", note) for note in compared.remarks)]
    heading = "\n".join(f"* {name}: {escaped(text)}" for name, text in items)
    rows = _rows(compared, everything)
    cells = [[f"**{row[0]}**" if row[0] == "worse" else row[0], code(row[1]), *map(escaped, row[2:])] for row in rows]
    table = markdown_table(HEAD, cells, words=len(HEAD))
    return "\n\n".join(["# Comparison", heading, compared.summary, *([table] if rows else [])]) + "\n"


def worse(found: Sequence[FigureComparison]) -> str:
    """Write a message that names the largest of the changes for the worse."""
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    listed = "; ".join(map(str, found[:LISTED]))
    verb = "figure is" if len(found) == 1 else "figures are"
    return f"{len(found)} {verb} worse than the baseline allows: {listed}{more}"


def require_no_worse(compared: ReportComparison) -> None:
    """Check that no figure is worse.

    Raises:
        GateError: A figure is worse; the message names those that changed most.
    """
    if found := compared.of("worse"):
        raise GateError(worse(found), hint="every figure: --all")


def _rows(compared: ReportComparison, everything: bool) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for one in (one for verdict in (VERDICTS if everything else ("worse", "better")) for one in compared.of(verdict)):
        beside = "" if one.against_reference is None else f"{one.against_reference:+.1%}"
        values = f"{one.before:.4g}", f"{one.now:.4g}"
        rows.append((one.verdict, one.figure, *values, one.absolute, beside, one.limits or one.why))
    return rows
