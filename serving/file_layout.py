"""What a user says about a file with rows, as command-line options. Light, so that ``--help`` is fast."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from serving.option_fields import Option


def parse_rows_location(text: str) -> Path:
    """Check that rows can be read from a location.

    Args:
        text: A file, a folder, or a pattern such as ``part-*.csv``.

    Returns:
        The location.

    Raises:
        ValueError: Nothing is there.
    """
    path = Path(text)
    if not path.exists() and not glob.glob(text):  # noqa: PTH207 - a pattern may begin anywhere
        raise ValueError(f"{text!r} does not exist: give a file, a folder, or a pattern of files such as 'part-*.csv'")
    return path


def parse_column_names(text: str) -> str:
    """Check the names of the columns of a file without a header.

    Args:
        text: Names separated by commas; an empty name or ``-`` stands for a column that is left out.

    Returns:
        The text.

    Raises:
        ValueError: No column is named, or one is named twice.
    """
    names = [name for name in column_names(text) if name]
    if not names:
        raise ValueError(f"{text!r} names no column")
    if len(set(names)) < len(names):
        raise ValueError(f"{text!r} names a column twice")
    return text


def column_names(text: str) -> tuple[str, ...]:
    """Split the names of columns at commas; the name of a column that is left out is empty."""
    return tuple("" if name.strip() == "-" else name.strip() for name in text.split(","))


def parse_separator(text: str) -> str:
    r"""Read the separator of columns, in which ``\t`` stands for a tab.

    Raises:
        ValueError: It is empty.
    """
    if not text:
        raise ValueError("the separator is empty")
    return text.replace("\\t", "\t")


def parse_encoding(text: str) -> str:
    """Check the name of a text encoding, such as ``latin-1``.

    Raises:
        ValueError: Python knows no such encoding.
    """
    try:
        "".encode(text)
    except LookupError:
        raise ValueError(f"{text!r} is not a text encoding; such are utf-8, utf-16, latin-1, cp1252, cp949, gb18030") from None
    return "utf-8" if text.lower() in {"utf8", "utf-8"} else text


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """How the rows stand in their file, where its name and its content do not say it."""

    file_format: Annotated[
        Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "conll"],
        Option("Format of the file with the rows; auto: by its name."),
    ] = "auto"
    header: Annotated[
        str | None,
        Option(
            "Names of all columns of a file without a header, separated by commas; - leaves a column out.",
            flag="--columns",
            metavar="NAME,NAME…",
            parse=parse_column_names,
            default_text="the file's header",
        ),
    ] = None
    separator: Annotated[
        str | None,
        Option(
            "Separator of the columns. Except in csv files, the last column then takes the rest of the line.",
            metavar="TEXT",
            parse=parse_separator,
            default_text="a comma in csv, a tab in tsv and txt",
        ),
    ] = None
    encoding: Annotated[str, Option("Encoding of the file, such as latin-1 or cp949.", parse=parse_encoding)] = "utf-8"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns of a file without a header; the name of a column that is left out is empty."""
        return () if self.header is None else column_names(self.header)
