"""Columns of a data set: which hold texts, choices and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from serving.errors import DataError
from serving.file_layout import FileLayout
from serving.option_fields import Option
from serving.options import ChoiceColumns, TextColumn, TextPairColumn

if TYPE_CHECKING:
    from export.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns that the user names. The task's default names apply to the others.

    Attributes:
        layout: How the rows stand in a file.
    """

    text: TextColumn = None
    text_pair: TextPairColumn = None
    choices: ChoiceColumns = ()
    labels: Annotated[
        tuple[str, ...],
        Option(
            "Column of the label. Repeat the option for one column per label, which is 1 in the rows that have the label.",
            flag="--label-column",
            default_text="the task's",
        ),
    ] = ()
    layout: FileLayout = field(default_factory=FileLayout)
    hint: ClassVar[str] = (
        "name the columns with --text-column, --text-pair-column, --choice-column and --label-column; "
        "if the file has no header, name all its columns with --columns"
    )
    """What to do if a column is missing."""

    def resolved(self, task: type[Task]) -> ResolvedColumns:
        """Fill in the task's default names.

        Args:
            task: The task.

        Returns:
            The names of all columns.

        Raises:
            DataError: A column of choices is named, but the task has no choices.
        """
        texts = (self.text or task.columns["text"], self.text_pair or task.columns["text_pair"])
        default_choices = task.columns.get("choices")
        if self.choices and default_choices is None:
            raise DataError(f"rows of {task.name} have no choices", hint="leave out --choice-column")
        several = len(self.labels) > 1
        return ResolvedColumns(
            texts=tuple(name for name in texts if name is not None),
            choices=self.choices or ((default_choices,) if default_choices is not None else ()),
            label=None if several else self.labels[0] if self.labels else task.columns["label"],
            labels=self.labels if several else (),
            hint=self.hint,
        )


@dataclass(frozen=True, kw_only=True)
class ColumnsOfTestRows(Columns):
    """Columns of the test rows, which have options of their own."""

    hint: ClassVar[str] = (
        "name the columns of the test rows with --test-text-column, --test-text-pair-column and --test-label-column; "
        "if the file has no header, name all its columns with --columns"
    )


@dataclass(frozen=True, kw_only=True)
class HeldOutColumns:
    """Columns of the test rows, where they have other names than those of the training rows."""

    text: Annotated[
        str | None, Option("Column of the text in the test rows.", flag="--test-text-column", default_text="as --text-column")
    ] = None
    text_pair: Annotated[
        str | None,
        Option("Column of the second text in the test rows.", flag="--test-text-pair-column", default_text="as --text-pair-column"),
    ] = None
    label: Annotated[
        str | None, Option("Column of the label in the test rows.", flag="--test-label-column", default_text="as --label-column")
    ] = None

    def over(self, columns: Columns) -> Columns:
        """Return the columns of the test rows.

        Args:
            columns: The columns of the training rows.
        """
        return ColumnsOfTestRows(
            text=self.text or columns.text,
            text_pair=self.text_pair or columns.text_pair,
            choices=columns.choices,
            labels=columns.labels if self.label is None else (self.label,),
            layout=columns.layout,
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedColumns:
    """Names of all columns that are read.

    Attributes:
        texts: One or two columns of text.
        choices: One column with a list of choices, or several columns with one choice each; empty: the task has none.
        label: Column of the label; None: there is none, or there are several.
        labels: One column for each label, in place of ``label``.
        hint: What to do if a column is missing.
    """

    texts: tuple[str, ...]
    choices: tuple[str, ...] = ()
    label: str | None
    labels: tuple[str, ...] = ()
    hint: str = Columns.hint

    @property
    def names(self) -> tuple[str, ...]:
        """The columns behind each cell that :meth:`cells` returns."""
        return (*self.texts, *((", ".join(self.choices),) if self.choices else ()))

    def cells(self, value: Callable[[str], Any]) -> tuple[Any, ...]:
        """Read the cells of one row.

        Args:
            value: Returns the row's value in a column.

        Returns:
            The texts, then the choices as one cell.
        """
        texts = tuple(map(value, self.texts))
        if not self.choices:
            return texts
        return (*texts, value(self.choices[0]) if len(self.choices) == 1 else list(map(value, self.choices)))

    def label_of(self, value: Callable[[str], Any]) -> Any:
        """Read the label of one row.

        Args:
            value: Returns the row's value in a column.

        Returns:
            The label; with one column for each label, the list of the labels that the row has.

        Raises:
            ValueError: A column for one label holds another value than 0, 1, true or false.
        """
        if self.labels:
            return [name for name in self.labels if _yes(name, value(name))]
        return None if self.label is None else value(self.label)


def _yes(column: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in {"1", "0", "true", "false", "1.0", "0.0"}:
        raise ValueError(f"column {column!r} holds {value!r:.40}, but a column for one label must hold 1, 0, true or false")
    return text in {"1", "true", "1.0"}
