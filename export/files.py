"""Read rows from one file, from all files that match a pattern, or from a folder."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from serving.errors import DataError
from serving.records import FORMATS, LocatedRow, read_file

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""Prefixes of the names of a split's files and folders, such as ``train-00000-of-00002.parquet``."""
TEXT_FILES = "*.txt"


def read_rows(location: str, split: str) -> Iterator[LocatedRow]:
    """Read the rows of a file, of all files that match a pattern such as ``part-*.csv``, or of a folder.

    If a folder has files that are named after the split, only these are read, otherwise all files that are not named after another
    split. A folder may also have one folder per label with one ``.txt`` file per text; these rows have the columns ``text`` and
    ``label``.

    Args:
        location: The file, pattern or folder.
        split: The split to read from a folder.

    Yields:
        The place of each row, and its cells by column.

    Raises:
        DataError: There are no rows, or a file cannot be read.
    """
    path = Path(location)
    if path.is_dir():
        yield from _folder_rows(path, split)
    elif glob.has_magic(location) and not path.exists():
        found = sorted(glob.glob(location))  # noqa: PTH207 - a pattern may begin anywhere
        yield from _read_files(list(map(Path, found)), location)
    else:
        yield from read_file(path)


def _folder_rows(folder: Path, split: str) -> Iterator[LocatedRow]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix in FORMATS]
    if files:
        named = [path for path in files if _belongs_to(path, split)]
        unnamed = [path for path in files if not any(_belongs_to(path, other) for other in SPLITS)]
        yield from _read_files(named or unnamed, f"{folder}, for {split}")
        return
    split_folder = next((path for path in sorted(folder.iterdir()) if path.is_dir() and _belongs_to(path, split)), None)
    labels = [path for path in sorted((split_folder or folder).iterdir()) if path.is_dir() and any(path.glob(TEXT_FILES))]
    if labels:
        for label in labels:
            for path in sorted(label.glob(TEXT_FILES)):
                yield f"{label.name}/{path.name}", {"text": _read_text(path), "label": label.name}
    elif split_folder is not None:
        yield from _folder_rows(split_folder, split)
    else:
        raise DataError(f"{folder} holds no rows: it has no {', '.join(FORMATS)} files, and no folder of .txt files per label")


def _belongs_to(path: Path, split: str) -> bool:
    stem = path.name.partition(".")[0].lower()
    return any(stem == name or (stem.startswith(name) and not stem[len(name)].isalnum()) for name in SPLITS.get(split, (split,)))


def _read_files(paths: list[Path], location: str) -> Iterator[LocatedRow]:
    if not paths:
        raise DataError(f"no file {location}")
    for path in paths:
        for where, row in read_file(path):
            yield (where if len(paths) == 1 else f"{path.name}, {where}"), row


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", hint="save it as UTF-8") from error
