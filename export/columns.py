"""Columns of a data set: which hold texts, choices and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from serving.errors import DataError
from serving.option_fields import Option

if TYPE_CHECKING:
    from export.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns that the user names; the task's own names hold for the others."""

    text: Annotated[
        str | None,
        Option("Column of the text, or of the first of two texts.", flag="--text-column", default_text="the task's"),
    ] = None
    text_pair: Annotated[str | None, Option("Column of the second text.", flag="--text-pair-column", default_text="the task's")] = (
        None
    )
    choices: Annotated[
        tuple[str, ...],
        Option(
            "Column with a list of choices; given several times: columns with one choice each.",
            flag="--choice-column",
            default_text="the task's",
        ),
    ] = ()
    labels: Annotated[
        tuple[str, ...],
        Option(
            "Column of the label; given several times: one column for each label, 1 in the rows that have it.",
            flag="--label-column",
            default_text="the task's",
        ),
    ] = ()

    def resolved(self, task: type[Task]) -> ResolvedColumns:
        """Fill in the task's own names.

        Args:
            task: The task.

        Returns:
            The names of all columns.

        Raises:
            DataError: Choices are named, and the task has none.
        """
        texts = (self.text or task.columns["text"], self.text_pair or task.columns["text_pair"])
        own = task.columns.get("choices")
        if self.choices and own is None:
            raise DataError(f"rows of {task.name} have no choices", hint="leave out --choice-column")
        several = len(self.labels) > 1
        return ResolvedColumns(
            texts=tuple(name for name in texts if name is not None),
            choices=self.choices or ((own,) if own is not None else ()),
            label=None if several else self.labels[0] if self.labels else task.columns["label"],
            labels=self.labels if several else (),
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedColumns:
    """Names of all columns that are read.

    Attributes:
        texts: One or two columns of text.
        choices: One column with a list of choices, or several columns with one choice each; empty: the task has none.
        label: Column of the label; None: there is none, or there are several.
        labels: One column for each label, in place of ``label``.
    """

    texts: tuple[str, ...]
    choices: tuple[str, ...] = ()
    label: str | None
    labels: tuple[str, ...] = ()

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
            ValueError: A column for one label holds neither yes nor no.
        """
        if self.labels:
            return [name for name in self.labels if _yes(name, value(name))]
        return None if self.label is None else value(self.label)


def _yes(column: str, value: Any) -> bool:
    said = str(value).strip().lower()
    if said not in {"1", "0", "true", "false", "1.0", "0.0"}:
        raise ValueError(f"column {column!r} says {value!r:.40}, not whether the row has that label: 1 or 0, true or false")
    return said in {"1", "true", "1.0"}
