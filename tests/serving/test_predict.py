"""``tritonize predict``: arguments, standard input and files, against the running server."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from export.cli import main
from serving.input_rows import InputFile
from tests.helpers.disk import full_disk
from tests.helpers.servers import Server

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


def test_truncated_rows_are_named(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, long = "Boring .", "a warm film " * 200
    assert predict(server, short, long, short, long) == 0
    output = capsys.readouterr()
    assert [len(line.split("\t")) for line in output.out.splitlines()] == [2] * 4
    said = "2 of 4 rows were truncated: the model takes 96 tokens, and the answers do not consider the rest: rows 2, 4"
    assert output.err == f"warning: {said}\n"
    assert predict(server, "--json", short, long) == 0
    output = capsys.readouterr()
    assert [json.loads(line).get("truncated") for line in output.out.splitlines()] == [None, True]
    assert output.err.endswith(": row 2\n")
    rows = write_rows(tmp_path / "rows.jsonl", [short, long] * 7)
    files = ["--input", str(rows), "--output", str(tmp_path / "answers.jsonl"), "--text-column", "sentence"]
    assert predict(server, *files) == 0
    assert [row.get("truncated") for row in answers(tmp_path / "answers.jsonl")] == [None, True] * 7
    assert "7 of 14 rows were truncated" in (said := capsys.readouterr().err) and "rows 2, 4, 6, 8, 10, …" in said
    lines = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join(lines[:11]))
    assert predict(server, *files) == 0
    assert "2 of 3 rows were truncated" in (said := capsys.readouterr().err) and said.count("rows 12, 14") == 1
    assert predict(server, short) == 0
    assert not capsys.readouterr().err


def test_a_refusal_of_the_server_names_the_request(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(server, "--option", "truncation=false", "a warm film " * 200) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: .* longer than the 96 tokens .*[(; ]request id [0-9a-f-]{36}\)\n", error), error


def command(server: Server, name: str, *arguments: str | bytes) -> list[str | bytes]:
    return [sys.executable, "-m", "export.cli", "predict", name, "--url", server.url("grpc"), *arguments]


def refused(command: list[str | bytes], given: bytes = b"") -> str:
    """What one line it says when it refuses what it is given."""
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    error = done.stderr.decode()
    assert done.returncode == 1, error
    assert len(error.splitlines()) == 1, error
    return error


def test_standard_input_and_pairs(server: Server) -> None:
    ask = command(server, "pairs", "--json")
    pair = json.dumps({"text": "one", "text_pair": "other"}).encode()
    done = subprocess.run(ask, input=b"%b\n\n%b\n" % (pair, pair), capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert "is not JSON" in refused(ask, b"no JSON\n")
    assert "is not JSON: it is nested too deeply" in refused(ask, b"[" * 100_000)
    assert "is not JSON: the key 'text' is there twice" in refused(ask, b'{"text": "a", "text": "b", "text_pair": "c"}\n')
    assert "line 2 of standard input is not a pair of texts: 'one' (write {" in refused(ask, b'%b\n"one"\n' % pair)
    assert "column 'text_pair' holds int, not text" in refused(ask, b'{"text": "one", "text_pair": 1}\n')
    assert "half of a surrogate pair" in refused(ask, b'{"text": "one", "text_pair": "\\ud83d"}\n')


def test_text_that_is_not_utf8(server: Server) -> None:
    assert "line 2 of standard input is not UTF-8: " in refused(command(server, "ragged"), b"caf\xc3\xa9\ncaf\xe9\n")
    assert "text 2 is not UTF-8: " in refused(command(server, "ragged", "fine", b"caf\xe9"))


def test_standard_input_with_a_mark_and_carriage_returns(server: Server, pipeline: Any) -> None:
    given = "\ufeffI loved it .\r\nBoring .".encode()
    done = subprocess.run(command(server, "ragged", "--json"), input=given, capture_output=True, check=True)
    scores = [json.loads(line)["score"] for line in done.stdout.splitlines()]
    assert scores == pytest.approx([answer["score"] for answer in pipeline(["I loved it .", "Boring ."])], abs=1e-5)


def test_each_line_is_answered_as_it_comes_until_ctrl_c(server: Server) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(server, "ragged"), **pipes) as process:  # type: ignore[call-overload]
        for text in (b"I loved it .", b"Boring ."):
            process.stdin.write(text + b"\n")
            process.stdin.flush()
            assert process.stdout.readline().split(b"\t")[0] in {b"negative", b"positive"}
        time.sleep(0.2)  # it waits for a line that does not come
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 1
        error = process.stderr.read()
        assert error.startswith(b"interrupted: every answer that is printed is complete") and error.count(b"\n") == 1, error


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
    assert [row["sentence"] for row in answers(output)] == texts[:60]
    assert [row["answer"]["label"] for row in answers(output)] == [answer["label"] for answer in expected[:60]]
    output.write_text(whole[: len(whole) // 2], encoding="utf-8")  # stopped in the middle of a line
    capsys.readouterr()
    assert predict(server, *files) == 0
    assert "were there already" in capsys.readouterr().err
    assert [row["sentence"] for row in answers(output)] == texts[:60]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pairs", [], "pairs takes pairs of texts (name the column of the second text with --text-pair-column)"),
        ("ragged", ["--text-pair-column", "sentence"], "ragged takes single texts, not pairs (leave out --text-pair-column)"),
    ],
)
def test_columns_that_the_ensemble_does_not_take(
    server: Server, tmp_path: Path, name: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.csv", ["one", "two"])
    files = ["--input", str(rows), "--output", str(tmp_path / "out.jsonl"), "--text-column", "sentence"]
    assert predict(server, *files, *arguments, name=name) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out.jsonl").exists()


def test_answers_of_two_ensembles_are_not_mixed(
    server: Server, tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output, source = write_rows(tmp_path / "rows.csv", texts[:6]), tmp_path / "a.jsonl", tmp_path / "a.jsonl.source.json"
    files = ["--input", str(rows), "--output", str(output), "--text-column", "sentence"]
    assert predict(server, *files) == 0
    recorded = json.loads(source.read_text(encoding="utf-8"))
    assert (recorded["ensemble"], recorded["parameters"]["task"]) == ("ragged", "text-classification")
    half = "".join(output.read_text(encoding="utf-8").splitlines(keepends=True)[:3])
    output.write_text(half, encoding="utf-8")
    capsys.readouterr()
    assert predict(server, *files, name="alone") == 1
    assert "a.jsonl.source.json records another ensemble" in capsys.readouterr().err
    source.write_text(json.dumps(recorded | {"parameters": recorded["parameters"] | {"settings": "{}"}}), encoding="utf-8")
    assert predict(server, *files) == 1
    assert "an earlier package of this one, or other request options" in capsys.readouterr().err
    source.write_text("{", encoding="utf-8")
    assert predict(server, *files) == 1
    assert "a.jsonl.source.json, which records their ensemble, is not readable" in capsys.readouterr().err
    source.unlink()
    assert predict(server, *files) == 1
    assert "which records their ensemble, is missing" in capsys.readouterr().err
    assert output.read_text(encoding="utf-8") == half
    output.write_text("", encoding="utf-8")
    assert predict(server, *files, name="alone") == 0
    assert json.loads(source.read_text(encoding="utf-8"))["ensemble"] == "alone"


def test_an_output_of_another_input_is_left_alone(
    server: Server, tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text('{"text": "something else", "answer": {}}\n')
    rows = write_rows(tmp_path / "rows.csv", texts[:5])
    assert predict(server, "--input", str(rows), "--output", str(output), "--text-column", "sentence") == 1
    assert "line 1 does not answer row 1" in capsys.readouterr().err
    assert output.read_text() == '{"text": "something else", "answer": {}}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xlsx", b"text", "rows must be in a .csv, .tsv, .txt, "),
        ("rows.csv", b"text\n", None),
        ("rows.csv", b"words\nx\n", "has no column 'text'; line 2 has words: {'words': 'x'}"),
        ("rows.csv", b"text\nhello, world\n", "line 2: 2 fields where the header has 1: ['hello', ' world']"),
        ("rows.csv", b"text\n\xff\xfe\n", "is not UTF-8"),
        ("rows.jsonl", b'{"text": "fine"}\n{"text": 3}\n', "line 2: column 'text' holds int, not text"),
        ("rows.jsonl", b'{"text": "fine"}\n{"text": "\\ud83d"}\n', "line 2: column 'text' holds half of a surrogate pair"),
        ("rows.jsonl", b'{"text": "fine"}\n[1]\n', "line 2 is not a JSON object"),
        ("rows.jsonl", b"{", "line 1 is not JSON"),
        ("rows.jsonl", b'{"text": "a", "text": "b"}\n', "line 1 is not JSON: the key 'text' is there twice"),
        ("rows.csv", b"text,text\na,b\n", "line 1: column 'text' is there twice"),
        ("rows.parquet", b"no parquet", "cannot read "),
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


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("rows.csv", '\ufefftext\n"hello, world"\n', ["hello, world"]),
        ("rows.csv", "text\n" + "word " * 30_000 + "\n", ["word " * 30_000]),
        ("rows.tsv", "\ufefftext\tother\r\none\rtwo\tx\r\n", ["one\rtwo"]),
        ("rows.jsonl", '\ufeff{"text": "one"}\n\n{"text": "two"}\n\n', ["one", "two"]),
    ],
)
def test_files_are_read_as_everywhere(tmp_path: Path, name: str, content: str, texts: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    found = InputFile(path=tmp_path / name, columns={"text": "text"}).rows()
    assert [row.inputs for row in found] == [{"text": text} for text in texts]


def test_two_runs_do_not_write_one_file(server: Server, tmp_path: Path, texts: list[str]) -> None:
    """The first is stopped in the middle. The second must find the file locked and leave it alone."""
    many = (texts * 4)[:900]
    rows, output = tmp_path / "rows.jsonl", tmp_path / "new" / "answers.jsonl"
    write_rows(rows, many)
    files = ["--input", str(rows), "--output", str(output), "--text-column", "sentence"]
    with subprocess.Popen(command(server, "ragged", *files), stderr=subprocess.PIPE) as first:
        while not output.exists() or not output.stat().st_size:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        written = output.read_bytes()
        error = refused(command(server, "ragged", *files))
        assert error == f"error: another predict writes {output} (wait until it ends, or choose another --output)\n"
        assert output.read_bytes() == written
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 0
    assert [row["sentence"] for row in answers(output)] == many
    assert sorted(path.name for path in output.parent.iterdir()) == ["answers.jsonl", "answers.jsonl.source.json"]
    assert subprocess.run(command(server, "ragged", *files), check=False).returncode == 0  # the lock ended with its run


def test_a_full_disk_names_the_file_and_the_run_goes_on_later(
    server: Server, tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, output = write_rows(tmp_path / "rows.csv", texts[:200]), tmp_path / "answers.jsonl"
    files = ["--input", str(rows), "--output", str(output), "--text-column", "sentence"]
    with full_disk(5000):
        assert predict(server, *files) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {output}: File too large (free space") and error.count("\n") == 1
    assert predict(server, *files) == 0
    assert [row["sentence"] for row in answers(output)] == texts[:200]


def test_an_input_that_is_refused_leaves_no_output(server: Server, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("no JSON\n")
    assert predict(server, "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "answers.jsonl")) == 1
    assert not (tmp_path / "answers.jsonl").exists()


def test_all_columns_of_a_row_are_kept(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {
        "id": [7, 8],
        "sentence": ["Fine.", "Dull."],
        "score": [0.5, math.nan],
        "at": [date(2024, 5, 1), None],
        "tags": [["a"], []],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    output = tmp_path / "answers.jsonl"
    files = ["--input", str(tmp_path / "rows.parquet"), "--output", str(output), "--text-column", "sentence"]
    assert predict(server, *files, "--option", "top_k=2") == 0
    found = answers(output)
    labels = [[answer["label"] for answer in row.pop("answer")] for row in found]
    assert [sorted(row) for row in labels] == [["negative", "positive"]] * 2
    assert found == [
        {"id": 7, "sentence": "Fine.", "score": 0.5, "at": "2024-05-01", "tags": ["a"]},
        {"id": 8, "sentence": "Dull.", "score": None, "at": None, "tags": []},
    ]
    assert predict(server, *files, "--option", "top_k=2") == 0, "the row with NaN is known again"
    assert "0 rows answered, 2 were there already" in capsys.readouterr().err
    assert predict(server, *files) == 1, "other options give other answers"
    assert "or other request options" in capsys.readouterr().err


def test_a_column_of_the_name_of_the_answer_is_refused(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "answer": "b"}\n')
    assert predict(server, "--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "answers.jsonl")) == 1
    assert "has a column 'answer', which the output needs (rename the column)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("top_k=many", "option top_k must be a whole number, not 'many'"),
        ("topk=2", "text-classification has no option topk; did you mean top_k?"),
        ("colour=2", "text-classification has no option colour; it has "),
        ("=3", "the name in front of = is empty in '=3'"),
        ("function_to_apply=tanh", "must be one of"),
        ("top_k", "'top_k' is not of the form KEY=VALUE"),
    ],
)
def test_wrong_options_are_wrong_usage(
    server: Server, tmp_path: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.csv", ["one"])
    files = ["--input", str(rows), "--output", str(tmp_path / "new.jsonl"), "--text-column", "sentence"]
    for arguments in (["one"], files):
        assert predict(server, *arguments, "--option", option) == 2
        said = capsys.readouterr()
        assert message in " ".join(said.err.split())
        assert not said.out
    assert not (tmp_path / "new.jsonl").exists()


def test_options_of_arguments(server: Server, capsys: pytest.CaptureFixture[str], pipeline: Any) -> None:
    assert predict(server, "--json", "--option", "top_k=2", "--option", "function_to_apply=none", "I loved it .") == 0
    found = json.loads(capsys.readouterr().out)
    wanted = pipeline(["I loved it ."], top_k=2, function_to_apply="none")[0]
    assert [answer["label"] for answer in found] == [answer["label"] for answer in wanted]
    assert [answer["score"] for answer in found] == pytest.approx([answer["score"] for answer in wanted], abs=1e-3)


@pytest.mark.long
def test_ctrl_c_says_how_to_continue(server: Server, tmp_path: Path, texts: list[str]) -> None:
    many = list(islice(cycle(texts), 3000))
    rows, output = write_rows(tmp_path / "rows.jsonl", many), tmp_path / "answers.jsonl"
    files = ["--input", str(rows), "--output", str(output), "--text-column", "sentence"]
    with subprocess.Popen(command(server, "ragged", *files), stderr=subprocess.PIPE) as process:
        while not output.exists() or not output.stat().st_size:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 1
        error = process.stderr.read().decode()
    written = output.read_text(encoding="utf-8").count("\n")
    assert 0 < written < len(many)
    assert error == f"interrupted: {written:,} of 3,000 rows are answered; run the same command to continue\n"
    again = subprocess.run(command(server, "ragged", *files), stderr=subprocess.PIPE, check=True)
    assert f"{3000 - written:,} rows answered, {written:,} were there already" in again.stderr.decode()
    assert [row["sentence"] for row in answers(output)] == many


def test_rows_from_a_pipe(server: Server, tmp_path: Path) -> None:
    pipe, output = tmp_path / "rows.tsv", tmp_path / "answers.jsonl"
    os.mkfifo(pipe)
    with subprocess.Popen(
        command(server, "ragged", "--input", str(pipe), "--output", str(output)), stderr=subprocess.PIPE
    ) as process:
        pipe.write_text('text\tid\n"Fine."\t1\n')
        assert process.wait(60) == 0, process.stderr.read()
    assert [(row["text"], row["id"]) for row in answers(output)] == [('"Fine."', "1")]


def test_an_option_is_given_once(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(server, "one", "--option", "top_k=2", "--option", "top-k=3") == 2
    assert "--option gives top_k twice" in " ".join(capsys.readouterr().err.split())
