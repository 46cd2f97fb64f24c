"""The output file of ``tritonize predict``: one JSON line per row, which an interrupted run continues."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.errors import DataError
from serving.writing import writing

ANSWER = "answer"
"""Key of the answer in a line of the output."""
TRUNCATED = "truncated"
"""Key behind it, with the value true, if the row was truncated."""


@dataclass(frozen=True, kw_only=True)
class AnswerFile:
    """The output file.

    Attributes:
        path: The file.
        source: What answers the rows: the ensemble, and the request options. JSON-ready.
    """

    path: Path
    source: Mapping[str, object]

    @property
    def source_path(self) -> Path:
        """The file beside the output that records the :attr:`source`."""
        return self.path.with_name(f"{self.path.name}.source.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from writing the file, which is created if it does not exist and removed if an error leaves it empty.

        Raises:
            DataError: Another run writes it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        created = not self.path.exists()
        with self.path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked = False
            else:  # the file may have been removed since it was opened
                locked = self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat())
            if not locked:
                raise DataError(f"another predict writes {self.path}", hint="wait until it ends, or choose another --output")
            try:
                yield
            except BaseException:
                if created and os.fstat(file.fileno()).st_size == 0:
                    self.path.unlink(missing_ok=True)
                raise

    def complete_lines(self) -> list[bytes]:
        """Return the lines that are written to the end."""
        data = self.path.read_bytes()
        return data[: data.rfind(b"\n") + 1].splitlines()

    def prepare(self, *, resumes: bool) -> None:
        """Cut off a line that is not complete, and record the source, or check it if there are answers already.

        Args:
            resumes: Whether there are answers already.

        Raises:
            DataError: They came from another source.
        """
        if resumes:
            self._check_source()
        else:
            with writing(self.source_path):
                self.source_path.write_text(json.dumps(self.source, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in self.complete_lines()))

    def _check_source(self) -> None:
        try:
            found = json.loads(self.source_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            reason = f"{self.source_path.name}, which records their ensemble, is missing"
        except ValueError as error:
            reason = f"{self.source_path.name}, which records their ensemble, is not readable: {error}"
        else:
            if found == self.source:
                return
            reason = f"{self.source_path.name} records another ensemble, an earlier package of this one, or other request options"
        raise DataError(
            f"{self.path} may hold answers that do not come from {self.source['ensemble']} as it is served now: {reason}",
            hint="move it, or choose another --output",
        )


def opened_line(fields: Mapping[str, object]) -> str:
    """Return the line of a row up to its answer: ``{"id": 7, "text": "…", "answer": ``.

    Args:
        fields: The row by column.
    """
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:  # JSON has no NaN
        text = json.dumps(_without_nan(fields), ensure_ascii=False, allow_nan=False, default=str)
    return f'{text[:-1]}, "{ANSWER}": '


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list) else value
