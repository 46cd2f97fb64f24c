"""Where ``predict --input`` finds its rows: files, patterns and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import DataError
from serving.input_rows import InputFile


def test_folders_and_patterns_are_read_as_by_finetune(tmp_path: Path) -> None:
    for name in ("imdb/test/neg/1.txt", "imdb/test/unsup/2.txt", "imdb/train/neg/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "part-1.csv").write_text("id,text\n1,one\n", encoding="utf-8")
    (tmp_path / "part-2.csv").write_text("id,text\n2,two\n", encoding="utf-8")

    def found(path: str) -> list[dict[str, object]]:
        return [dict(row.fields) for row in InputFile(path=tmp_path / path, columns={"text": "text"}).rows()]

    assert [row["file"] for row in found("imdb")] == ["neg/1.txt", "unsup/2.txt"]
    assert found("imdb/test/neg") == [{"text": "imdb/test/neg/1.txt", "file": "1.txt"}]
    assert [row["id"] for row in found("part-*.csv")] == ["1", "2"]
    with pytest.raises(DataError, match="no file"):
        found("none-*.csv")
