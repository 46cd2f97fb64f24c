"""Files of rows: one, several by a pattern, or a folder of them."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from serving.errors import DataError
from serving.records import FORMATS, Record, read_file

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
"""How files and folders of a split may be called: the beginning of a name, as ``train-00000-of-00002.parquet``."""
TEXTS = "*.txt"


def read_rows(location: str, split: str) -> Iterator[Record]:
    """Rows of a file, of all files that a pattern such as ``part-*.csv`` matches, or of a folder.

    A folder may hold files called by their split (else all its files are taken), or for each label a folder of ``.txt`` files, one
    for each text: those rows have the columns ``text`` and ``label``.

    Raises:
        DataError: there is nothing to read, or a file cannot be read.
    """
    path = Path(location)
    if path.is_dir():
        yield from _folder_rows(path, split)
    elif glob.has_magic(location) and not path.exists():
        found = sorted(glob.glob(location))  # noqa: PTH207 - a pattern may begin anywhere
        yield from _several(list(map(Path, found)), location)
    else:
        yield from read_file(path)


def _folder_rows(folder: Path, split: str) -> Iterator[Record]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix in FORMATS]
    if files:
        named = [path for path in files if _is_of(path, split)]
        others = [path for path in files if not any(_is_of(path, other) for other in SPLITS)]
        yield from _several(named or others, f"{folder}, for {split}")
        return
    within = next((path for path in sorted(folder.iterdir()) if path.is_dir() and _is_of(path, split)), None)
    labels = [path for path in sorted((within or folder).iterdir()) if path.is_dir() and any(path.glob(TEXTS))]
    if labels:
        for label in labels:
            for path in sorted(label.glob(TEXTS)):
                yield f"{label.name}/{path.name}", {"text": _text(path), "label": label.name}
    elif within is not None:
        yield from _folder_rows(within, split)
    else:
        raise DataError(f"{folder} holds no rows: neither {', '.join(FORMATS)} files nor folders of .txt files, one for each label")


def _is_of(path: Path, split: str) -> bool:
    stem = path.name.partition(".")[0].lower()
    return any(stem == name or (stem.startswith(name) and not stem[len(name)].isalnum()) for name in SPLITS.get(split, (split,)))


def _several(paths: list[Path], location: str) -> Iterator[Record]:
    if not paths:
        raise DataError(f"no file {location}")
    for path in paths:
        for where, row in read_file(path):
            yield (where if len(paths) == 1 else f"{path.name}, {where}"), row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", hint="save it as UTF-8") from error
