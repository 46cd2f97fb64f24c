"""Reads CoNLL files: a word and its labels in each line, and a blank line after each sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from serving.errors import DataError
from serving.records.record import LocatedRow, shown
from serving.records.row_file import RowFile
from serving.reporting import plural

WORDS, LABELS = "tokens", "ner"
"""Columns of a sentence's words and of their labels, unless the user names others."""
DOCUMENT_START = "-DOCSTART-"


@dataclass(frozen=True, kw_only=True)
class _Form:
    """How the words of a file stand in its lines.

    Attributes:
        tabs: Whether columns are separated by tabs; otherwise by white space.
        columns: Number of columns.
    """

    tabs: bool
    columns: int

    def fields(self, line: str) -> list[str]:
        """Split a line into its columns."""
        return line.split("\t") if self.tabs else line.split()

    def is_comment(self, line: str, *, starts_sentence: bool) -> bool:
        """Return whether a line that begins with ``#`` is a comment, such as ``# id = 7``, and not the word ``#``."""
        if self.tabs:
            return "\t" not in line
        return starts_sentence and (len(line.split()) != self.columns or "=" in line)


def read_conll(file: RowFile) -> Iterator[LocatedRow]:
    """Read the sentences of a CoNLL file.

    A sentence is a row: a list of words, and a list of labels from the last column. Columns between them are left out, unless the
    user names all columns. Labels of the IOB1 scheme become IOB2: the first ``I-X`` of an entity becomes ``B-X``.

    Raises:
        DataError: A line has another number of columns than the first one, or there is only one.
    """
    words: list[list[str]] = []
    start = 0
    with file.open_text(newline="\n") as lines:
        head, form = _find_form(lines)
        if form is None:
            return
        names = file.layout.names or (WORDS, *[""] * (form.columns - 2), *([LABELS] if form.columns > 1 else []))
        if len(names) != form.columns:
            raise DataError(
                f"{file.path} has {form.columns} {plural(form.columns, 'column')}, but --columns names {len(names)}",
                hint="name each column, or -",
            )
        for number, line in enumerate(chain(head, lines), start=1):
            stripped = line.strip("\r\n" if form.tabs else None)
            if not stripped.strip():
                yield from _sentence(names, words, start)
                words = []
            elif stripped.startswith(DOCUMENT_START) or (
                stripped.startswith("#") and form.is_comment(stripped, starts_sentence=not words)
            ):
                continue
            else:
                start = start if words else number
                words.append(_checked(file, form, stripped, number))
    yield from _sentence(names, words, start)


def _find_form(lines: Iterable[str]) -> tuple[list[str], _Form | None]:
    """Find the form of a file by its first word.

    Returns:
        The lines read so far, and the form; None if there is no word.
    """
    head = []
    for line in lines:
        head.append(line)
        stripped = line.strip("\r\n")
        if stripped.strip() and not stripped.startswith((DOCUMENT_START, "#")):
            tabs = "\t" in stripped
            return head, _Form(tabs=tabs, columns=len(stripped.split("\t" if tabs else None)))
    return head, None


def _checked(file: RowFile, form: _Form, line: str, number: int) -> list[str]:
    fields = form.fields(line)
    if len(fields) != form.columns or not all(fields):
        separator = "tabs" if form.tabs else "spaces"
        found = len(list(filter(None, fields)))
        raise DataError(
            f"{file.path}, line {number}: {found} {plural(found, 'column')} where the first word has {form.columns}: {shown(line)}",
            hint=f"each line must have a word and its labels, separated by {separator}; a blank line ends a sentence",
        )
    return fields


def _sentence(names: Sequence[str], words: list[list[str]], start: int) -> Iterator[LocatedRow]:
    if words:
        row = {name: list(column) for name, column in zip(names, zip(*words, strict=True), strict=True) if name}
        if len(names) > 1 and names[-1]:
            row[names[-1]] = _iob2(row[names[-1]])
        yield f"line {start}", row


def _iob2(labels: list[str]) -> list[str]:
    """Begin each entity with ``B-``. Labels of other schemes stay as they are."""
    found, before = [], ""
    for label in labels:
        mark, _, kind = label.partition("-")
        begins = mark == "I" and before not in (f"B-{kind}", f"I-{kind}")
        found.append(f"B-{kind}" if begins and kind else label)
        before = label
    return found
