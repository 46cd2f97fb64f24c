"""Where rows come from and how they are kept apart: files, folders, patterns, label columns, held-out rows, leaks, lengths."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest

from export import cli, leaks, lengths, sources
from export.columns import Columns, HeldOutColumns
from export.data import LabelledRows, Rows, hold_out
from export.splits import load_splits
from export.tasks.question_answering import QuestionAnsweringTask
from export.tasks.text_classification import MULTI_LABEL, TextClassificationTask
from serving.artifact import read_manifest
from serving.errors import DataError
from serving.manifests import CheckpointManifest
from serving.records import read_rows
from tests.helpers.reviews import review_rows, write_tsv


def texts_of(location: str, split: str = "train", columns: Columns | None = None) -> list[str]:
    rows = sources.load_rows(location, columns or Columns(), TextClassificationTask, split=split, cache=Path("unused"))
    return list(rows.texts[0])


@pytest.fixture
def parts(in_folder: Path) -> Path:
    """A folder with files of every split, some of them in parts."""
    for name, rows in {
        "train-00000-of-00002.tsv": [("one", "a")],
        "train-00001-of-00002.tsv": [("two", "b")],
        "dev.tsv": [("three", "a")],
        "test.tsv": [("four", "b")],
        "trainers.tsv": [("five", "b")],
    }.items():
        write_tsv(in_folder / name, rows)
    (in_folder / "README.md").write_text("no rows")
    return in_folder


def test_a_folder_gives_the_files_of_a_split(parts: Path) -> None:
    assert texts_of(str(parts)) == ["one", "two"]
    assert texts_of(str(parts), "validation") == ["three"]
    assert texts_of(str(parts), "test") == ["four"]


def test_a_folder_without_files_of_splits_gives_all(in_folder: Path) -> None:
    write_tsv(in_folder / "a.tsv", [("one", "a")])
    (in_folder / "b.jsonl").write_text('{"text": "two", "label": "b"}\n')
    assert texts_of(".") == ["one", "two"]


def test_a_pattern_gives_all_that_match(parts: Path) -> None:
    assert texts_of(f"{parts}/train-*.tsv") == ["one", "two"]
    with pytest.raises(DataError, match=r"no file nothing-\*\.csv"):
        texts_of("nothing-*.csv")
    write_tsv(parts / "odd[1].tsv", [("six", "a")])
    assert texts_of("odd[1].tsv") == ["six"], "a file of that very name is no pattern"


def test_what_is_wrong_is_told_with_its_file(parts: Path) -> None:
    (parts / "train-00001-of-00002.tsv").write_text("text\tlabel\nonly one field\n")
    with pytest.raises(DataError, match=r"train-00001-of-00002\.tsv, line 2: 1 fields"):
        texts_of(str(parts))


def test_folders_of_texts_are_labels(in_folder: Path) -> None:
    for split, label, name, text in (
        ("train", "neg", "0_1.txt", "bad"),
        ("train", "pos", "1_9.txt", "góod\nindeed"),
        ("test", "pos", "0_8.txt", "fine"),
    ):
        (in_folder / split / label).mkdir(parents=True, exist_ok=True)
        (in_folder / split / label / name).write_text(text, encoding="utf-8")
    rows = sources.load_rows(".", Columns(), TextClassificationTask, split="train", cache=Path("unused"))
    assert (rows.texts, rows.labels) == ((("bad", "góod\nindeed"),), ("neg", "pos"))
    assert texts_of(".", "test") == ["fine"] == texts_of("test", "train")
    (in_folder / "train" / "neg" / "2.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"2\.txt, line 1: byte 0xff at position 0 is not UTF-8"):
        texts_of(".")


def test_a_folder_without_rows_is_an_error(in_folder: Path) -> None:
    (in_folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no rows"):
        texts_of("empty")
    write_tsv(in_folder / "train.tsv", [("one", "a")])
    with pytest.raises(DataError, match=r"no file .*, for test"):
        list(read_rows(str(in_folder), "test"))


def test_a_column_for_each_label(in_folder: Path) -> None:
    (in_folder / "rows.csv").write_text("text,joy,fear\nso so,0,0\nhurray,1,0\nwhat a ride,1,True\n")
    rows = sources.load_rows(
        "rows.csv", Columns(labels=("joy", "fear")), TextClassificationTask, split="train", cache=Path("unused")
    )
    assert rows.labels == ([], ["joy"], ["joy", "fear"]) and rows.names == ("joy", "fear")
    task = TextClassificationTask.from_labels(rows.labels, names=rows.names, pair=False)
    assert (task.problem_type, task.labels) == (MULTI_LABEL, ("joy", "fear")), "in the order of the columns"
    (in_folder / "odd.csv").write_text("text,joy,fear\nso so,0,maybe\n")
    with pytest.raises(DataError, match=r"line 2: column 'fear' holds 'maybe', but a column for one label must hold 1, 0"):
        texts_of("odd.csv", columns=Columns(labels=("joy", "fear")))
    with pytest.raises(DataError, match="has no column 'anger'"):
        texts_of("rows.csv", columns=Columns(labels=("joy", "anger")))


def test_held_out_rows_have_the_labels_of_the_rest() -> None:
    labels = ("often",) * 180 + ("rare",) * 20
    rows = Rows(location="rows", texts=(tuple(f"text {number}" for number in range(200)),), labels=labels)
    for seed in range(5):
        kept, held = hold_out(rows, 0.1, seed)
        assert Counter(held.labels) == {"often": 18, "rare": 2} and len(kept) == 180
    assert hold_out(rows, 0.1, 0)[1] == hold_out(rows, 0.1, 0)[1] != hold_out(rows, 0.1, 1)[1]
    many = Rows(location="rows", texts=rows.texts, labels=tuple(f"label {number % 100}" for number in range(200)))
    assert len(hold_out(many, 0.1, 0)[1]) == 20, "also where no label has enough rows for one of its own"
    numbers = Rows(location="rows", texts=rows.texts, labels=tuple(number / 7 for number in range(200)))
    assert len(hold_out(numbers, 0.1, 0)[1]) == 20


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A fine film.", "a  fine, film", True),
        ("Ｆｕｌｌ width", "full WIDTH", True),
        ("straße", "STRASSE", True),
        ("a fine film", "a finer film", False),
        ("?!", "…", False),
        ("한국어", "한국어!", True),
    ],
)
def test_texts_are_compared_without_what_makes_no_other_text(one: str, other: str, same: bool) -> None:
    assert (leaks.normalize_text(one) == leaks.normalize_text(other)) is same


def test_training_rows_of_other_splits_are_found() -> None:
    splits = {
        "train": LabelledRows(texts=(("One.", "two", "TWO", "three"),), labels=(0, 1, 0, 1)),
        "test": LabelledRows(texts=(("one", "one", "four"),), labels=(0, 0, 1)),
    }
    found = leaks.find_leaks(splits)
    assert (found.shared, found.training, found.conflicting_texts) == ({"test": 2}, (0,), 1)


def test_several_answers_are_no_conflict() -> None:
    context = (("Who?", "who?"), ("Ann and Bo.", "Ann and Bo."))
    answers = ([{"text": "Ann", "answer_start": 0}], [{"text": "Bo", "answer_start": 8}])
    splits = {"train": LabelledRows(texts=context, labels=answers)}
    assert leaks.find_leaks(splits).conflicting_texts == 1
    found = leaks.find_leaks(splits, several_answers=QuestionAnsweringTask.several_answers)
    assert (found.conflicting_texts, found.conflict) == (0, None)


@pytest.mark.parametrize(
    ("split", "option"), [("train", "--text-column"), ("validation", "--text-column"), ("test", "--test-text-column")]
)
def test_a_missing_column_names_the_option_of_its_split(in_folder: Path, split: str, option: str) -> None:
    write_tsv(in_folder / "good.tsv", [("one", "a"), ("two", "b")])
    (in_folder / "other.tsv").write_text("body\tlabel\none\ta\n", encoding="utf-8")
    columns = {"train": Columns(), "validation": Columns(), "test": HeldOutColumns().over(Columns())}
    with pytest.raises(DataError, match=r"other\.tsv has no column 'text'") as caught:
        load_splits(
            dict.fromkeys(columns, "good.tsv") | {split: "other.tsv"},
            columns,
            TextClassificationTask,
            cache=in_folder,
            max_train_rows=None,
            seed=0,
            keep_leaks=False,
        )
    assert f" with {option}, " in caught.value.hint


def test_they_are_not_learnt_from(in_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tsv(in_folder / "train.tsv", [("one", "a"), ("two", "b"), ("three", "b"), ("four", "a")])
    write_tsv(in_folder / "dev.tsv", [("One!", "a"), ("five", "b")])
    locations = {"train": "train.tsv", "validation": "dev.tsv", "test": None}

    caplog.set_level(logging.INFO)

    def load(*, keep: bool) -> list[str]:
        found = load_splits(
            locations,
            dict.fromkeys(locations, Columns()),
            TextClassificationTask,
            cache=in_folder,
            max_train_rows=None,
            seed=0,
            keep_leaks=keep,
        )
        return list(found.rows["train"].texts[0])

    assert load(keep=False) == ["two", "three", "four"]
    said = caplog.text
    assert "1 validation row duplicates training rows (ignoring case, spaces and punctuation)" in said
    assert "1 training row also occurs in other splits: removed from training" in said
    assert load(keep=True) == ["one", "two", "three", "four"]
    locations["validation"] = "train.tsv"
    with pytest.raises(DataError, match="every training row also occurs in the validation or test rows"):
        load(keep=False)


def test_rows_are_cut_where_most_are_whole(
    in_folder: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lengths.fitted_length([5] * 99 + [500], minimum=16) == 16
    assert lengths.fitted_length([5] * 50 + [33] * 50, minimum=16) == 40
    monkeypatch.setattr(TextClassificationTask, "default_max_length", 16)
    rows = review_rows(100, seed=1)
    write_tsv(
        in_folder / "train.tsv",
        [(f"{text} {text} {text} {text}" if at % 2 else text, label) for at, (text, label) in enumerate(rows)],
    )
    command = ["finetune", "--checkpoint", str(base_checkpoint), "--train", "train.tsv", "--epochs", "1", "--device", "cpu"]
    command += ["--name", "named"]
    assert cli.main(command) == 0
    found = read_manifest(in_folder / "artifacts" / "named" / "checkpoint", CheckpointManifest).max_length
    assert found % 8 == 0 and 16 < found <= 64
    assert cli.main([*command, "--max-length", "16"]) == 0
    assert " training rows are truncated at 16 tokens; the longest has " in capsys.readouterr().err


def test_large_data_sets_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(300)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n"
        "        names:\n          '0': good\n          '1': bad\n  splits:\n"
        "  - name: train\n    num_bytes: 3000\n    num_examples: 300\n---\n"
    )
    monkeypatch.setattr(sources, "STREAMING_BYTES", 1000)

    def load(most: int | None, seed: int = 0) -> Rows:
        location = f"hub:{folder}"
        return sources.load_rows(
            location, Columns(), TextClassificationTask, split="train", cache=tmp_path, max_rows=most, seed=seed
        )

    found = load(20)
    assert len(found) == 20 and found.names == ("good", "bad") and set(found.labels) == {"good", "bad"}
    assert found == load(20) and found != load(20, seed=1), "the same rows for the same seed"
    assert len(load(None)) == 300
