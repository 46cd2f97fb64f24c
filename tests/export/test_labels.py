"""Labels that would be trained as something else than what they look like: one line from the command line, before any training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.cli import main
from export.columns import Columns
from export.data import Rows, bind_evaluation_labels
from export.sources import load_rows
from export.tasks.text_classification import TextClassificationTask
from export.tasks.zero_shot_classification import ZeroShotClassificationTask
from serving.errors import DataError


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What ``finetune`` says of rows with these labels. Its checkpoint does not exist, so it never trains."""

    def said(*labels: Any, task: str = "text-classification", column: str = "label") -> list[str]:
        rows = [{"text": f"text {number}", "tokens": ["a", "b"], column: label} for number, label in enumerate(labels * 10)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        given = ["--task", task, "--train", str(tmp_path / "rows.jsonl"), "--checkpoint", str(tmp_path / "none")]
        assert main(["finetune", "--name", "tiny", "--artifacts", str(tmp_path), *given]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert not any("Traceback" in line for line in lines)
        return [line.replace(str(tmp_path / "rows.jsonl"), "rows") for line in lines]

    return said


MULTI_HOT = (
    "error: rows, line 1: the label {} has a 1 or 0 for each label: list the labels of the row instead, "
    "or give one column per label and name each with --label-column: "
)


@pytest.mark.parametrize("label", [[0, 1, 1], [0, 0], [True, False], [0.0, 1.0], ["0", "1", "1"]], ids=str)
def test_a_number_for_each_label_is_refused(label: list[Any], said: Callable[..., list[str]]) -> None:
    assert said(label)[-1].startswith(MULTI_HOT.format(label))


def test_a_number_for_each_label_is_refused_in_text_files_and_evaluation_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('text,label\na,"[1, 0, 0]"\n', encoding="utf-8")
    with pytest.raises(DataError, match="has a 1 or 0 for each label"):
        load_rows(str(tmp_path / "rows.csv"), Columns(), TextClassificationTask, split="test", cache=tmp_path)


@pytest.mark.parametrize("written", [("1", "0"), ("1.0", "0.0"), ("true", "false")])
def test_a_column_for_each_label_is_what_it_asks_for(written: tuple[str, str], tmp_path: Path) -> None:
    yes, no = written
    (tmp_path / "rows.csv").write_text(f"text,joy,fear\na,{yes},{no}\nb,{yes},{yes}\nc,{no},{no}\n", encoding="utf-8")
    columns = Columns(labels=("joy", "fear"))
    rows = load_rows(str(tmp_path / "rows.csv"), columns, TextClassificationTask, split="train", cache=tmp_path)
    assert rows.labels == (["joy"], ["joy", "fear"], [])
    assert rows.names == ("joy", "fear")


@pytest.mark.parametrize("labels", [([0], [1], [0, 2], []), ([1, 0], [2])])
def test_positions_of_labels_are_lists_too(labels: tuple[list[int], ...], said: Callable[..., list[str]]) -> None:
    assert "no checkpoint folder" in said(*labels)[-1]


def test_two_classes_with_a_fraction_are_refused(said: Callable[..., list[str]]) -> None:
    """As pandas writes a column in which a value was missing."""
    assert said(0.0, 1.0)[-1] == (
        "error: rows: the labels are 0.0 and 1.0, which are too few numbers to predict a number (regression): "
        "for two classes, write 0 and 1, or names"
    )


def test_more_whole_numbers_with_a_fraction_are_said_to_be_a_regression(said: Callable[..., list[str]]) -> None:
    *_, warning, held_out, error = said(1.0, 2.0, 3.0, 4.0, 5.0)
    assert warning == (
        "warning: the labels are numbers such as 1.0, 2.0, 3.0 …: the model will predict a number (regression); for 5 classes, "
        "write 1, 2, 3 …, or names"
    )
    assert "held out" in held_out
    assert "no checkpoint folder" in error


@pytest.mark.parametrize("labels", [(0.0, 1.0, 0.5), (0.25, 1.0), tuple(map(float, range(30)))], ids=["half", "two", "many"])
def test_scores_need_no_warning(labels: tuple[float, ...], said: Callable[..., list[str]]) -> None:
    lines = said(*labels)
    assert not any(line.startswith("warning") for line in lines)
    assert "no checkpoint folder" in lines[-1]


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (("pos", "neg", "pos "), "'pos' and 'pos '"),
        (("pos", "neg", "\tpos"), r"'\tpos' and 'pos'"),
        (("very good", "very\u00a0good", "bad"), r"'very good' and 'very\xa0good'"),
        (("caf\u00e9", "cafe\u0301", "bad"), "'cafe\u0301' and 'caf\u00e9'"),
        ((["pos", "neg"], ["pos "]), "'pos' and 'pos '"),
        (("1", "2", "1 "), "'1' and '1 '"),
    ],
)
def test_one_label_in_two_spellings_is_refused(labels: tuple[Any, ...], named: str, said: Callable[..., list[str]]) -> None:
    assert said(*labels)[-1] == (
        f"error: rows: the labels {named} differ only in spaces or in how characters are encoded "
        "(write a label the same way in every row)"
    )


def test_tags_in_two_spellings_are_refused(said: Callable[..., list[str]]) -> None:
    lines = said(["B-city", "O"], ["B-city ", "O"], task="token-classification", column="ner")
    assert "differ only in spaces" in lines[-1]


def test_labels_that_differ_in_case_are_pointed_out(said: Callable[..., list[str]]) -> None:
    lines = said("Pos", "neg", "pos")
    assert "warning: rows: the labels 'Pos' and 'pos' differ only in upper and lower case, and count as different labels" in lines
    assert "no checkpoint folder" in lines[-1]


@pytest.mark.parametrize("label", ["", " ", "\t", [" "]])
def test_a_blank_is_no_label(label: Any, said: Callable[..., list[str]]) -> None:
    assert said("pos", label)[-1].startswith("error: rows, line ")


def test_candidates_in_two_spellings_are_refused() -> None:
    """Zero-shot classification takes the labels of the evaluation rows as candidates."""
    task = ZeroShotClassificationTask.from_config({"id2label": {"0": "contradiction", "1": "entailment"}})
    rows = Rows(location="rows", texts=(("a", "b"),), labels=("pos", "pos "))
    with pytest.raises(DataError, match="rows: the labels 'pos' and 'pos ' differ only in spaces"):
        bind_evaluation_labels(task, rows)
