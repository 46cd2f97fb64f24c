"""Rows from files and their labels, the rows that a checkpoint keeps, and what is said about bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from export import data, sources
from export.columns import Columns
from export.data import Rows
from export.tasks.text_classification import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TextClassificationTask
from serving.errors import DataError
from tests.helpers.tasks import classification


def load(path: Path, columns: Columns | None = None) -> Rows:
    return sources.load_rows(str(path), columns or Columns(), TextClassificationTask, split="train", cache=path.parent / "cache")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_is_quoted_and_tsv_is_not(tmp_path: Path) -> None:
    csv = load(write(tmp_path / "a.csv", 'text,label\r\n"one, ""two""\nthree",b\r\nNA,a\r\n'))
    tsv = load(write(tmp_path / "a.tsv", '\ufefftext\tlabel\r\n"one, ""two\u2028three\tb\r\n\ta\r\n'))
    assert csv.texts == (('one, "two"\nthree', "NA"),)
    assert tsv.texts == (('"one, ""two\u2028three', ""),)
    assert csv.labels == tsv.labels == ("b", "a")


def test_jsonl_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "", "gold": 2}, {"premise": "é", "hypothesis": "c", "gold": 0}]
    jsonl = write(tmp_path / "a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    columns = Columns(text="premise", text_pair="hypothesis", labels=("gold",))
    found = load(jsonl, columns)
    assert found.texts == (("a", "é"), ("", "c"))
    assert found.labels == (2, 0)
    assert found.digest() == load(tmp_path / "a.parquet", columns).digest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence,label\nfine,1\n", r"no column 'text'; line 2 has sentence, label: .*'fine'"),
        ("a.csv", "text,label\nfine,1\nworse\n", r"line 3: 1 fields where the header has 2: \['worse'\]"),
        ("a.csv", 'text,label\n"fine,1\n', r"a\.csv, line 2: unexpected end of data"),
        ("a.tsv", "text\tlabel\nfine\tx\nworse\t\n", r"line 3: the label is empty: .*'worse'"),
        ("a.tsv", "text\tlabel\n", r"holds no rows"),
        ("a.tsv", "", r"holds no rows"),
        ("a.tsv", b"text\tlabel\nfa\xe7ade\t1\n", r"a\.tsv, line 2: byte 0xe7 at position 13 is not UTF-8"),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": 5, "label": 1}\n', r"line 2: column 'text' holds int, not text"),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": "b", "label": "x"}\n',
            r"line 2: label 'x' is text, but the first label is a",
        ),
        ("a.jsonl", '{"text": "\\ud83d", "label": 0}\n', r"line 1: column 'text' holds half of a surrogate pair"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "b", "label": 0.5}\n',
            r"line 2: label 0\.5 is a number, but the first label is text",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": ["x"]}\n{"text": "b", "label": "x"}\n',
            r"line 2: label 'x' is text, but the first label is a list",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": {"x": 1}}\n',
            r"line 1: the label is of type dict, not a name, a number or a list of names",
        ),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', r"line 1: the label is nan, not a name, a number or a list of names"),
        ("a.jsonl", '{"text": "a", "label": null}\n', r"line 1: the label is empty"),
        ("a.jsonl", '{"text": "a", "label": ["x", 0.5]}\n', r"line 1: the label is not a list of names or whole numbers"),
        ("a.jsonl", '{"text": "a", "label": ["x", ""]}\n', r"line 1: the label is not a list of names or whole numbers"),
        (
            "a.tsv",
            "text\tlabel\na\t['x', 'y']\n",
            r'line 2: the label is not a list .* written as JSON in text files: \["joy", "fear"\]: ',
        ),
        ("a.jsonl", '{"text": "a"\n', r"line 1 is not JSON: "),
        ("a.jsonl", "[" * 100_000, r"line 1 is not JSON: it is nested too deeply: '\[\["),
        (
            "a.jsonl",
            '{"text": "a", "label": 0}\n{"text": "b", "label": 0, "text": "c"}\n',
            r"a\.jsonl, line 2 is not JSON: the key 'text' is there twice: ",
        ),
        ("a.jsonl", '{"data": {"text": "a", "text": "b"}, "label": 0}\n', r"line 1 is not JSON: the key 'text' is there twice: "),
        ("a.csv", "text,label,text\na,0,b\n", r"a\.csv, line 1: column 'text' is there twice"),
        ("a.tsv", "label\ttext\tlabel\n0\ta\t1\n", r"a\.tsv, line 1: column 'label' is there twice"),
        ("a.jsonl", "[1]\n", r"line 1 is not a JSON object: \[1\]"),
        ("a.parquet", "no parquet", r"cannot read .*a\.parquet: "),
        ("a.xlsx", "", r"rows must be in a \.csv, \.tsv, \.txt, "),
    ],
)
def test_bad_files_are_refused_with_the_row(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / name, content))


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array([0]), pa.array(["b"])], names=["text", "label", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'text' is there twice"):
        load(tmp_path / "a.parquet")


def test_columns_without_a_name_may_repeat(tmp_path: Path) -> None:
    """Spreadsheets write them at the end."""
    assert load(write(tmp_path / "a.csv", "text,label,,\na,x,,\nb,y,,\n")).texts == (("a", "b"),)


def test_where_texts_and_label_were_looked_for_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "one,two,gold\nfine,,\n")
    with pytest.raises(DataError, match=r"line 2: the label is empty: \{'one': 'fine', 'two': '', 'gold': ''\}") as caught:
        load(path, Columns(text="one", text_pair="two", labels=("gold",)))
    assert caught.value.hint == "columns read: one, two, gold"


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*absent\.csv"):
        load(tmp_path / "absent.csv")


def rows_of(*labels: Any, names: tuple[str, ...] = ()) -> Rows:
    return Rows(location="rows", texts=(tuple(f"text {index}" for index in range(len(labels))),), labels=labels, names=names)


def bound(*labels: Any, names: tuple[str, ...] = ()) -> TextClassificationTask:
    task = data.bind_training_labels(TextClassificationTask, rows_of(*labels, names=names), pair=False)
    assert isinstance(task, TextClassificationTask)
    return task


def task_of(*labels: str, problem_type: str = SINGLE_LABEL) -> TextClassificationTask:
    return classification(labels, "none", problem_type)


def test_label_order_is_fixed() -> None:
    assert bound("b", "a", "B").labels == ("B", "a", "b")
    assert bound(10, 9, 2).labels == ("2", "9", "10")
    assert bound("a", "b", names=("b", "a")).labels == ("b", "a")
    assert bound(["b"], ["a", "B"], []).labels == ("B", "a", "b")
    assert bound(["a"], [], names=("b", "a")).labels == ("b", "a")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("a", "a"), "rows: one label only, 'a': there is nothing to tell apart"),
        ((1, 1), "rows: one label only, 1: "),
        ((["b", "a"], ["a", "b"]), "rows: the same labels in every row, 'a', 'b': there is nothing to tell apart"),
        (([], []), "rows: the same labels in every row, none: "),
        ((["a"], [1]), "rows: some of its labels are names, others whole numbers"),
        (([1, "a"], [1, "a"]), "rows: some of its labels are names, others whole numbers"),
        ((0.5, 0.5), "rows: every row has the number 0.5: there is nothing to learn"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError) as caught:
        bound(*labels)
    assert caught.value.message.startswith(message)


def test_the_labels_say_which_kind_of_classification_it_is() -> None:
    def kind(*labels: Any) -> tuple[str, str, tuple[str, ...]]:
        task = bound(*labels)
        return task.problem_type, task.served.function_to_apply, task.labels

    assert kind("a", "b") == (SINGLE_LABEL, "softmax", ("a", "b"))
    assert kind(["a"], ["b", "a"]) == (MULTI_LABEL, "sigmoid", ("a", "b"))
    assert kind(["a"], []) == (MULTI_LABEL, "sigmoid", ("a",)), "one label, which a row has or has not"
    assert kind(0.5, 4.0) == (REGRESSION, "none", ("score",))


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        (("1", "-2", "3"), (1, -2, 3)),
        (("1", "2.5", "-.5"), (1.0, 2.5, -0.5)),
        (("3.", "1e-05", "-2E+1"), (3.0, 1e-05, -20.0)),
        (("1", "2.5", "n/a"), ("1", "2.5", "n/a")),
        (("1.2.3", "4", "e5"), ("1.2.3", "4", "e5")),
        (('["b", "a"]', "[]", "[0]"), (["b", "a"], [], [0])),
        (("True", "False", "1"), ("True", "False", "1")),
    ],
)
def test_text_files_know_no_kinds_but_are_read_as_if(tmp_path: Path, written: tuple[str, ...], labels: tuple[Any, ...]) -> None:
    rows = load(write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"x\t{label}\n" for label in written)))
    assert rows.labels == labels
    assert [type(label) for label in rows.labels] == [type(label) for label in labels]


def test_one_fraction_makes_all_labels_numbers(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "a.jsonl", '{"text": "a", "label": 4}\n{"text": "b", "label": 0.5}\n{"text": "c", "label": 3}\n'))
    assert rows.labels == (4.0, 0.5, 3.0)
    assert {type(label) for label in rows.labels} == {float}


def test_lists_of_labels_are_the_same_in_jsonl_and_parquet(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": ["joy", "fear"]}, {"text": "b", "label": []}, {"text": "c", "label": ["joy"]}]
    jsonl = load(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert jsonl.labels == (["joy", "fear"], [], ["joy"])
    assert jsonl.digest() == load(tmp_path / "a.parquet").digest()
    assert data.encode_labels(jsonl, data.bind_training_labels(TextClassificationTask, jsonl, pair=False)).labels == (
        [0, 1],
        [],
        [1],
    )


def test_labels_become_positions() -> None:
    assert data.encode_labels(rows_of(10, 2), task_of("2", "9", "10")).labels == (2, 0)
    assert data.encode_labels(rows_of("a", "b"), task_of("b", "a")).labels == (1, 0)
    assert data.encode_labels(rows_of(1, 0), task_of("negative", "positive")).labels == (1, 0)
    assert data.encode_labels(rows_of(2, 1), task_of("1", "2")).labels == (1, 0), "names go before positions"
    assert data.encode_labels(rows_of(["b", "a", "b"], [], [1]), task_of("a", "b", problem_type=MULTI_LABEL)).labels == (
        [0, 1],
        [],
        [1],
    )
    assert data.encode_labels(rows_of("b"), task_of("a", "b", problem_type=MULTI_LABEL)).labels == ([1],)


@pytest.mark.parametrize("codes", [["007", "1"], ["1", "-01"], ["01110", "1110"]])
def test_codes_with_leading_zeros_are_no_numbers(tmp_path: Path, codes: list[str]) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"some text {code},{code}\n" for code in codes), encoding="utf-8")
    assert sources.load_rows(str(file), Columns(), TextClassificationTask, split="train", cache=tmp_path).labels == tuple(codes)


def test_numbers_stay_numbers() -> None:
    found = data.encode_labels(rows_of(4, 0.5), task_of("score", problem_type=REGRESSION)).labels
    assert found == (4.0, 0.5)
    assert {type(label) for label in found} == {float}


def test_whole_numbers_with_a_fraction_of_zero_are_positions() -> None:
    """As pandas writes a column of labels that has gaps."""
    assert data.encode_labels(rows_of(1.0, 0.0), task_of("neg", "pos")).labels == (1, 0)
    with pytest.raises(DataError, match=r"unknown label 0\.5"):
        data.encode_labels(rows_of(0.5), task_of("neg", "pos"))


WITHHELD = " (a negative label means that the labels of this split are withheld: use another split)"


@pytest.mark.parametrize(
    ("label", "task", "message"),
    [
        ("c", task_of("a", "b"), "unknown label 'c', known labels: a, b"),
        (2, task_of("a", "b"), "unknown label 2, known labels: a, b"),
        (0, task_of("1", "2"), "unknown label 0, known labels: 1, 2"),
        (-1, task_of("0", "1"), f"unknown label -1, known labels: 0, 1{WITHHELD}"),
        (["a"], task_of("a", "b"), "label ['a'] is a list, and a row has one of a, b"),
        (["a", "c"], task_of("a", "b", problem_type=MULTI_LABEL), "unknown label 'c', known labels: a, b"),
        ([0, -1], task_of("a", "b", problem_type=MULTI_LABEL), f"unknown label -1, known labels: a, b{WITHHELD}"),
        ("c", task_of("score", problem_type=REGRESSION), "label 'c' is not a number"),
        ([1], task_of("score", problem_type=REGRESSION), "label [1] is not a number"),
    ],
)
def test_unknown_label_is_refused_with_the_row(label: Any, task: TextClassificationTask, message: str) -> None:
    with pytest.raises(DataError) as caught:
        data.encode_labels(rows_of(1.0 if task.problem_type == REGRESSION else task.labels[0], label), task)
    assert caught.value.message == f"rows, row 2: {message}: ('text 1',)"


def test_sampling_and_holding_out_are_seeded_and_disjoint() -> None:
    assert data.sample_indices(10, 4, seed=1) == data.sample_indices(10, 4, seed=1) != data.sample_indices(10, 4, seed=2)
    assert data.sample_indices(3, 4, seed=0) == data.sample_indices(3, None, seed=0) == [0, 1, 2]
    texts = tuple("abcdefghijklmnopqrstuvwxyz"[index * index % 26] + str(index % 3) for index in range(200))
    kept, held = data.hold_out(Rows(location="rows", texts=(texts,), labels=tuple(range(200))), 0.1, seed=0)
    assert not set(kept.texts[0]) & set(held.texts[0]), "equal texts stay on one side"
    assert sorted((*kept.labels, *held.labels)) == list(range(200))
    assert len(set(held.texts[0])) == round(len(set(texts)) / 10)
    with pytest.raises(DataError, match="2 different texts, too few"):
        data.hold_out(rows_of("a", "b"), 0.1, seed=0)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (task_of("a", "b"), (1, 0)),
        (task_of("a", "b", problem_type=MULTI_LABEL), ([0, 1], [])),
        (task_of("a", "b", problem_type=MULTI_LABEL), ([], [])),
        (task_of("score", problem_type=REGRESSION), (0.5, 4.0)),
    ],
)
@pytest.mark.parametrize("texts", [(("a", ""),), (("a", "b"), ("", "é"))])
def test_evaluation_rows_survive_the_file(
    task: TextClassificationTask, labels: tuple[Any, ...], texts: tuple[tuple[str, ...], ...], tmp_path: Path
) -> None:
    rows = data.LabelledRows(texts=texts, labels=labels)
    data.write_evaluation(rows, tmp_path)
    assert data.read_evaluation(tmp_path, task.with_settings({"pair": len(texts) == 2})) == rows
    assert parquet.read_schema(tmp_path / data.EVALUATION).names == [*("text", "text_pair")[: len(texts)], "label"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            data.LabelledRows(texts=(("a",), ("b",)), labels=(0,)),
            "with the columns text and label, but has the columns text, text_pair, label",
        ),
        (data.LabelledRows(texts=((),), labels=()), "with the columns text and label, but has no rows"),
        (
            data.LabelledRows(texts=(("a", "b"),), labels=(1, 2)),
            "row 2: label 2 is not a label of this checkpoint: {'text': 'b', 'label': 2}",
        ),
        (data.LabelledRows(texts=(("a",),), labels=(0.5,)), "row 1: label 0.5 is not a label of this checkpoint"),
        (data.LabelledRows(texts=(("a",),), labels=([0],)), "row 1: label [0] is not a label of this checkpoint"),
        (data.LabelledRows(texts=((None,),), labels=(0,)), "row 1: column 'text' holds NoneType, not text"),  # type: ignore[arg-type]
    ],
)
def test_evaluation_rows_of_another_task_are_refused(rows: data.LabelledRows, message: str, tmp_path: Path) -> None:
    data.write_evaluation(rows, tmp_path)
    with pytest.raises(DataError) as caught:
        data.read_evaluation(tmp_path, task_of("a", "b"))
    assert message in caught.value.message


def test_absent_and_foreign_evaluation_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*evaluation\.parquet"):
        data.read_evaluation(tmp_path, task_of("a", "b"))
    for task, label in ((task_of("a", problem_type=MULTI_LABEL), 0), (task_of("score", problem_type=REGRESSION), 1)):
        data.write_evaluation(data.LabelledRows(texts=(("a",),), labels=(label,)), tmp_path)
        with pytest.raises(DataError, match=rf"row 1: label {label} is not a label of this checkpoint"):
            data.read_evaluation(tmp_path, task)
