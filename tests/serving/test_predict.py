"""``tritonize predict``: arguments, standard input and files, against the running server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from export.cli import main

from .conftest import Server

pytestmark = pytest.mark.server


def predict(server: Server, *arguments: str, name: str = "ragged") -> int:
    return main(["predict", name, "--url", server.url("grpc"), *arguments])


def write_rows(path: Path, texts: list[str]) -> Path:
    match path.suffix:
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.table({"sentence": texts}), path)
        case ".jsonl":
            path.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts), encoding="utf-8")
        case ".csv":
            quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
            path.write_text("\n".join(["sentence", *quoted]) + "\n", encoding="utf-8")
        case ".tsv":
            path.write_text("\n".join(["sentence\tother", *(f"{text}\tx" for text in texts)]) + "\n", encoding="utf-8")
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_arguments_as_words_and_as_json(server: Server, capsys: pytest.CaptureFixture[str], pipeline: Any) -> None:
    assert predict(server, "I loved it .", "Boring .") == 0
    words = capsys.readouterr().out.splitlines()
    expected = pipeline(["I loved it .", "Boring ."])
    assert [line.split("\t")[0] for line in words] == [answer["label"] for answer in expected]
    assert predict(server, "--json", "I loved it .") == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(expected[0]["score"], abs=1e-3)


def test_standard_input_and_pairs(server: Server) -> None:
    command = [sys.executable, "-m", "export.cli", "predict", "pairs", "--url", server.url("grpc"), "--json"]
    pair = json.dumps({"text": "one", "text_pair": "other"})
    done = subprocess.run(command, input=f"{pair}\n{pair}\n", capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 2
    done = subprocess.run(command, input="no JSON\n", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not JSON" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_files_keep_order_and_are_resumed(
    server: Server,
    tmp_path: Path,
    texts: list[str],
    expected: list[dict[str, Any]],
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write_rows(tmp_path / f"rows{suffix}", texts[:60])
    output = tmp_path / "answers.jsonl"
    files = ["--input", str(rows), "--output", str(output), "--text-column", "sentence"]
    assert predict(server, *files) == 0
    whole = output.read_text(encoding="utf-8")
    assert [row["text"] for row in answers(output)] == texts[:60]
    assert [row["answer"]["label"] for row in answers(output)] == [answer["label"] for answer in expected[:60]]
    output.write_text(whole[: len(whole) // 2], encoding="utf-8")  # stopped in the middle of a line
    capsys.readouterr()
    assert predict(server, *files) == 0
    assert "were there already" in capsys.readouterr().err
    assert [row["text"] for row in answers(output)] == texts[:60]


def test_an_output_of_another_input_is_left_alone(
    server: Server, tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text('{"text": "something else", "answer": {}}\n')
    rows = write_rows(tmp_path / "rows.csv", texts[:5])
    assert predict(server, "--input", str(rows), "--output", str(output), "--text-column", "sentence") == 1
    assert "line 1 does not answer row 0" in capsys.readouterr().err
    assert output.read_text() == '{"text": "something else", "answer": {}}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", b"text", "is no .csv, .tsv, .jsonl or .parquet file"),
        ("rows.csv", b"text\n", None),
        ("rows.csv", b"words\nx\n", "row 0: column 'text' is missing"),
        ("rows.csv", b"text\n\xff\xfe\n", "is not readable"),
        ("rows.jsonl", b'{"text": "fine"}\n{"text": 3}\n', "row 1: column 'text' is 3, not text"),
        ("rows.jsonl", b'{"text": "fine"}\n[1]\n', "line 2"),
        ("rows.jsonl", b"{", "is not readable"),
        ("rows.parquet", b"no parquet", "is not readable"),
    ],
)
def test_unusable_files(
    server: Server, tmp_path: Path, name: str, content: bytes, message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / name
    rows.write_bytes(content)
    code = predict(server, "--input", str(rows), "--output", str(tmp_path / "out.jsonl"))
    error = capsys.readouterr().err
    assert code == (1 if message else 0)
    assert (message or "0 rows answered") in error
    assert "Traceback" not in error
