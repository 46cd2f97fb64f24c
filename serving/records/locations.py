"""Read rows from one file, from all files that match a pattern, or from a folder."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from serving.errors import DataError
from serving.file_layout import FileLayout
from serving.records.file_reader import FORMATS, file_format, is_row_file, read_file, read_text
from serving.records.record import LocatedRow
from serving.reporting import logger

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Prefixes of the names of a split's files and folders, such as ``train-00000-of-00002.parquet``."""
TEXT_FILES = "*.txt"
UNLABELLED = ("unsup", "unlabeled", "unlabelled")
"""Folders beside those of the labels that hold texts without a label, as in the IMDB reviews."""


def read_rows(
    location: str, split: str, layout: FileLayout | None = None, *, words: bool = False, labelled: bool = True
) -> Iterator[LocatedRow]:
    """Read the rows of a file, of all files that match a pattern such as ``part-*.csv``, or of a folder.

    If a folder has files that are named after the split, only these are read, otherwise all files that are not named after another
    split. A folder may also have one folder per label with one ``.txt`` file per text; these rows have the columns ``text``,
    ``label`` and ``file``.

    Args:
        location: The file, pattern or folder.
        split: The split to read from a folder.
        layout: What the user says about the content of the files.
        words: Whether the task labels words (see :func:`serving.records.read_file`).
        labelled: Whether the rows need labels. Otherwise the texts of all folders are read, also of one without folders.

    Yields:
        The place of each row, and its cells by column.

    Raises:
        DataError: There are no rows, or a file cannot be read.
    """
    path, layout = Path(location), layout or FileLayout()
    if path.is_dir():
        yield from _folder_rows(path, split, layout, words=words, labelled=labelled)
    elif glob.has_magic(location) and not path.exists():
        found = sorted(glob.glob(location))  # noqa: PTH207 - a pattern may begin anywhere
        yield from _read_files(list(map(Path, found)), location, layout, words=words)
    else:
        yield from read_file(path, layout, words=words)


def _folder_rows(folder: Path, split: str, layout: FileLayout, *, words: bool, labelled: bool) -> Iterator[LocatedRow]:
    paths = sorted(folder.iterdir())
    of_splits = [path for path in paths if belongs_to_split(path)]
    files = [path for path in of_splits if path.is_file() and file_format(path, layout, words=words)]
    unnamed = [path for path in paths if path.is_file() and path not in of_splits and is_row_file(path)]
    if files or unnamed:
        named = [path for path in files if _belongs_to(path, split)]
        yield from _read_files(named or unnamed, f"{folder}, for {split}", layout, words=words)
        return
    split_folder = next((path for path in of_splits if path.is_dir() and _belongs_to(path, split)), None)
    labels = [path for path in sorted((split_folder or folder).iterdir()) if path.is_dir() and any(path.glob(TEXT_FILES))]
    if labels:
        yield from _labelled_texts(labels, layout, all_folders=not labelled)
    elif split_folder is not None:
        yield from _folder_rows(split_folder, split, layout, words=words, labelled=labelled)
    elif not labelled and any(folder.glob(TEXT_FILES)):
        for path in sorted(folder.glob(TEXT_FILES)):
            yield path.name, {"text": read_text(path, layout), "file": path.name}
    else:
        raise DataError(f"{folder} holds no rows: it has no {', '.join(FORMATS)} files, and no folder of .txt files per label")


def _read_files(paths: list[Path], location: str, layout: FileLayout, *, words: bool) -> Iterator[LocatedRow]:
    if not paths:
        raise DataError(f"no file {location}")
    for path in paths:
        for where, row in read_file(path, layout, words=words):
            yield (where if len(paths) == 1 else f"{path.name}, {where}"), row


def _labelled_texts(folders: list[Path], layout: FileLayout, *, all_folders: bool) -> Iterator[LocatedRow]:
    for folder in folders:
        if folder.name in UNLABELLED and not all_folders:
            logger.info(f"{folder} is left out: its texts have no label")
            continue
        for path in sorted(folder.glob(TEXT_FILES)):
            name = f"{folder.name}/{path.name}"
            yield name, {"text": read_text(path, layout), "label": folder.name, "file": name}


def belongs_to_split(path: Path) -> bool:
    """Return whether a file or folder is named after a split."""
    return any(_belongs_to(path, split) for split in SPLITS)


def _belongs_to(path: Path, split: str) -> bool:
    stem = path.name.partition(".")[0].lower()
    return any(stem == name or (stem.startswith(name) and not stem[len(name)].isalnum()) for name in SPLITS.get(split, (split,)))
