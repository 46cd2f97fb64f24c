"""Multiple choice without a server, held against ``AutoModelForMultipleChoice``: transformers has no pipeline for it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from export.cli import main
from export.columns import Columns
from export.data import checked_rows
from export.tasks.multiple_choice import MultipleChoiceTask as Task
from export.tasks.text_classification import TextClassificationTask
from export.training.batches import IGNORED, Collator
from export.training.losses import grouped_cross_entropy
from export.training.trainer import outputs_by_name
from serving.errors import DataError
from serving.runtime.tasks.multiple_choice import MultipleChoice
from serving.runtime.types import Features, Origins
from tests.helpers.graphs import MAX_LENGTH, Exported, random_checkpoint
from tests.helpers.reviews import BAD, FILLING, GOOD

ROWS = [
    ("the film was", ["a delight", "a mess", "dull and cold"]),
    ("funny " * 200, ["moving", "bad"]),
    ("", ["good"]),
    ("한국어 🎬👍🏽 cafe\u0301", ["warm", "영화", "again", "", "lifeless " * 100]),
]


def original(checkpoint: Path) -> list[list[float]]:
    """Scores of :data:`ROWS` as the model in ``transformers`` gives them, its inputs ``[1, choices, tokens]``."""
    model = transformers.AutoModelForMultipleChoice.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for text, choices in ROWS:
        encoded = tokenizer(
            [text] * len(choices), choices, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**{name: values[None] for name, values in encoded.items()}).logits
        found.append(logits.softmax(-1)[0].tolist())
    return found


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_answers_are_the_models(architecture: str, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", architecture, Task)
    exported = Exported(checkpoint, Task(served=MultipleChoice()), tmp_path / "graph")
    rows = exported.served.parse_inputs([{"text": text, "choices": choices} for text, choices in ROWS])
    for answer, wanted in zip(exported.answers(rows), original(checkpoint), strict=True):
        assert list(answer) == ["choice", "score", "scores"]
        assert answer["scores"] == pytest.approx(wanted, abs=1e-4)
        assert answer["choice"] == int(np.argmax(wanted))
        assert answer["score"] == max(answer["scores"])
    with pytest.raises(ValueError, match="CHOICES"):
        exported.answers([*rows, ("a", "[]")])


def rows_of(records: list[dict[str, Any]], task: Any = Task, **columns: Any) -> Any:
    named = ((f"row {number}", record) for number, record in enumerate(records, start=1))
    return checked_rows("rows", named, Columns(**columns).resolved(task), task)


@pytest.mark.parametrize(
    ("label", "position"),
    [(0, 0), (1, 1), ("1", 1), ("B", 1), ("A", 0), ("a mess", 1), (2, None), (-1, None), ("C", None), (0.5, None)],
)
def test_choices_of_several_columns_or_one(label: Any, position: int | None) -> None:
    several = {"goal": "it is", "sol1": "a delight", "sol2": "a mess", "label": label}
    listed = {"goal": "it is", "choices": ["a delight", "a mess"], "label": label}
    written = {**listed, "choices": json.dumps(listed["choices"])}
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (several, {"choices": ("sol1", "sol2")}),
        (listed, {}),
        (written, {"choices": ("choices",)}),
    ]
    for record, columns in ways:
        if position is None:
            with pytest.raises(DataError, match="row 1: the label"):
                rows_of([record], text="goal", **columns)
        else:
            rows = rows_of([record], text="goal", **columns)
            assert rows.texts == (("it is",), ('["a delight", "a mess"]',))
            assert rows.labels == (position,)


@pytest.mark.parametrize(
    ("choices", "label", "position"),
    [
        (["12", "7", "3", "1"], "3", None),
        (["B", "A"], "A", None),
        (["0", "1"], "1", 1),
        (["12", "7"], "12", None),
        (["12", "7"], 1, 1),
        (["A", "B"], "B", 1),
        (["12", "7"], "A", 0),
    ],
)
def test_a_label_that_may_be_a_text_or_a_position_is_refused(choices: list[str], label: Any, position: int | None) -> None:
    record = {"text": "how many", "choices": choices, "label": label}
    if position is None:
        with pytest.raises(
            DataError, match=r"row 1: the label '\w+' is ambiguous: the text of choice \d, and the number of choice \d"
        ):
            rows_of([record])
    else:
        assert rows_of([record]).labels == (position,)


@pytest.mark.parametrize("choices", [["one"], [], [1, 2], "one, two", '{"a": 1}', None])
def test_choices_that_are_none(choices: Any) -> None:
    with pytest.raises(DataError, match="row 1"):
        rows_of([{"text": "a", "choices": choices, "label": 0}])


def test_columns_that_are_not_there_or_not_the_tasks() -> None:
    with pytest.raises(DataError, match="no column 'sol3'"):
        rows_of([{"text": "a", "sol1": "b", "label": 0}], choices=("sol1", "sol3"))
    with pytest.raises(DataError, match="have no choices"):
        rows_of([{"text": "a", "sol1": "b", "label": 0}], task=TextClassificationTask, choices=("sol1",))


def test_positions_that_the_data_set_names() -> None:
    task = Task.from_labels(["choice1", "choice2"], names=("choice1", "choice2"), pair=True)
    assert [task.reference("choice2"), task.reference(1)] == [1, 1]
    assert Task(served=MultipleChoice()).with_evaluation_labels(["choice1"], names=("choice1", "choice2")) == task
    assert Task.from_labels(["0", "1"], names=("0", "1"), pair=True) == Task(served=MultipleChoice())
    with pytest.raises(ValueError, match="in every row"):
        Task.from_labels([1, 1], names=(), pair=True)
    with pytest.raises(ValueError, match="not the index of a choice"):
        task.reference("choice3")


@pytest.mark.parametrize("row", ["a", {"text": "a"}, {"text": "a", "choices": "b"}, {"text": "a", "choices": [1]}, ("a", ["b"])])
def test_rows_that_are_none(row: Any) -> None:
    with pytest.raises(TypeError):
        MultipleChoice().parse_inputs([row])


def test_of_equal_scores_the_first_is_the_best() -> None:
    task = Task(served=MultipleChoice())
    origins = Origins(np.array([0, 0, 1, 1, 1]))
    answers = task.answers({"logits": np.array([[1.0], [1.0], [0.0], [2.0], [2.0]], np.float32)}, origins)
    assert task.predictions(answers) == [0, 1]
    assert task.ties(answers).all()
    assert task.targets(Features([], origins), [1, 0]) == {"labels": [0, 1, 1, 0, 0]}


def test_groups_of_unlike_sizes_are_trained_on_together() -> None:
    collate = Collator({"input_ids": 0}, Task(served=MultipleChoice()))
    batch = collate(
        [
            {"input_ids": [[5, 6], [7]], "attention_mask": [[1, 1], [1]], "labels": [0, 1]},
            {"input_ids": [[8], [9, 9, 9], [4]], "attention_mask": [[1], [1, 1, 1], [1]], "labels": [1, 0, 0]},
        ]
    )
    assert batch["input_ids"].tolist() == [[[5, 6, 0], [7, 0, 0], [5, 6, 0]], [[8, 0, 0], [9, 9, 9], [4, 0, 0]]]
    assert batch["attention_mask"].sum(-1).tolist() == [[2, 1, 2], [1, 3, 1]]
    assert batch["labels"].tolist() == [[0, 1, IGNORED], [1, 0, 0]]
    logits = torch.tensor([[0.5, 1.5, 99.0], [1.0, 2.0, 3.0]], requires_grad=True)
    loss = grouped_cross_entropy(logits, batch["labels"])
    wanted = -(torch.log_softmax(logits[0, :2], -1)[1] + torch.log_softmax(logits[1], -1)[0]) / 2
    assert loss.item() == pytest.approx(wanted.item())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0
    outputs = outputs_by_name(logits.detach().numpy(), Task(served=MultipleChoice()), Origins(np.array([0, 0, 1, 1, 1])))
    assert outputs["logits"].tolist() == [[0.5], [1.5], [1.0], [2.0], [3.0]]


@pytest.fixture(scope="module")
def trained(base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Fine-tuned and exported through the command line on made-up rows: the good ending is the right one."""
    folder = tmp_path_factory.mktemp("choice")
    choose = random.Random(0)
    records = []
    for _ in range(240):
        endings = [choose.choice(GOOD), *choose.sample(BAD, choose.choice((1, 2)))]
        right = endings[0]
        choose.shuffle(endings)
        records.append({"text": choose.choice(FILLING), "choices": endings, "label": endings.index(right)})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    shared = ["--name", "tiny", "--task", "multiple-choice", "--artifacts", str(folder)]
    rows = str(folder / "rows.jsonl")
    assert main(["finetune", *shared, "--checkpoint", str(base_checkpoint), "--train", rows, "--learning-rate", "2e-3"]) == 0
    assert main(["export", *shared, "--test", rows, "--precision", "fp32"]) == 0
    return lambda kind: json.loads((folder / "tiny" / kind / "manifest.json").read_text(encoding="utf-8"))


def test_it_learns_what_is_right(trained: Callable[[str], Any]) -> None:
    assert trained("checkpoint")["figures"]["validation"]["accuracy"] > 0.9
    assert trained("bundle")["original"]["accuracy"] > 0.9
    assert trained("bundle")["precisions"]["fp32"]["figures"]["label_agreement"] == 1
