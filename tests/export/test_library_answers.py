"""Exported graphs, fed as they are served, answer raw texts as the library does that the checkpoint is made for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import cli, convert, graph
from export.tasks import task_class
from export.tasks.text_classification import TextClassificationTask
from serving.errors import ExportError
from serving.runtime.tasks.text_classification import TextClassification
from tests.helpers.checkpoints import make_config, make_tokenizer, randomize
from tests.helpers.library_comparison import PLAIN_INPUTS, TEXTS, compare, write_classifier


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a tiny random classifier of an architecture, with a tokenizer of byte-level BPE."""
    return lambda architecture, **changes: write_classifier(tmp_path_factory.mktemp(architecture), architecture, **changes)


def test_big_birds_attention_depends_on_the_length(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("big_bird")
    with pytest.raises(ExportError, match="a text of 64 tokens") as failed:
        compare(folder)
    assert "reduce --max-length" in failed.value.hint


def test_a_text_on_which_the_graph_fails_is_named(
    checkpoint: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BART's head wants equally many end tokens in all rows of a batch."""
    monkeypatch.setattr(convert, "_find_one_end_token", lambda _: None)
    folder = checkpoint("bart", tokenizer=make_tokenizer("bpe", model_input_names=PLAIN_INPUTS))
    with pytest.raises(ExportError, match=r"a text of all special tokens, .*, where the exported graph fails: ONNX Runtime cannot"):
        compare(folder)
    assert not capfd.readouterr().err, "ONNX Runtime does not print it too"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export", "error: BartForSequenceClassification cannot compute a batch of rows: All examples must have the same number"),
        (
            "finetune",
            "error: the model cannot compute a batch: All examples must have the same number of <eos> tokens.; the batch: ",
        ),
    ],
)
def test_rows_that_the_model_refuses_are_one_line(
    command: str, message: str, checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint("bart", tokenizer=make_tokenizer("bpe", model_input_names=PLAIN_INPUTS))
    rows = [{"text": f"{text}{' </s>' * (at % 3 == 0)}", "label": f"LABEL_{at % 2}"} for at, text in enumerate(TEXTS * 8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "export": ["--test"],
        "finetune": ["--epochs", "1", "--keep-leaks", "--validation", str(tmp_path / "rows.jsonl"), "--train"],
    }
    places = ["--artifacts", str(tmp_path), "--checkpoint", str(folder), "--max-length", "64", "--device", "cpu"]
    assert cli.main([command, *places, *data[command], str(tmp_path / "rows.jsonl")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_text_that_names_the_end_token_breaks_no_batch_of_bart(checkpoint: Callable[..., Path]) -> None:
    tokenizer = make_tokenizer("bpe", model_input_names=PLAIN_INPUTS)
    folder, end = checkpoint("bart", tokenizer=tokenizer), tokenizer.sep_token_id
    texts = ["good", "good </s> film </s></s> of course", "</s>", *TEXTS]
    assert compare(folder, (texts,)).max_difference < 1e-4
    labels = json.dumps(["film", "food"])
    found = compare(folder, (texts, [labels] * len(texts)), task="zero-shot-classification")
    assert found.texts > len(texts) and found.max_difference < 1e-4
    run = graph.runner(graph.session(folder / "graph" / "model.onnx"), ["logits"])
    alone = run({name: np.array([[0, 7, end]]) for name in PLAIN_INPUTS[:1]} | {"attention_mask": np.ones((1, 3), dtype=np.int64)})
    ids = np.array([[0, 7, end], [7, 8, 9]])  # the second row has no end token, which is not the fault of the first
    both = run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert np.abs(both["logits"][0] - alone["logits"][0]).max() < 1e-4


def test_a_text_that_the_library_answers_and_the_server_refuses_stops_the_export(
    make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextClassification.preprocess

    def refuse(self: Any, columns: Any, encoder: Any) -> Any:
        if "" in columns[0]:
            raise ValueError("row 0 is empty")
        return original(self, columns, encoder)

    monkeypatch.setattr(TextClassification, "preprocess", refuse)
    with pytest.raises(ExportError, match="answers an empty text, '', which would be refused when served: row 0 is empty"):
        compare(make_checkpoint("bert"))


def refusing(refused: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the library refuse some texts."""
    original = TextClassificationTask.library

    def library(self: Any, *arguments: Any, **options: Any) -> Callable[[Any], object]:
        ask = original(self, *arguments, **options)

        def answer(row: Any) -> object:
            if refused(row[0]):
                raise RuntimeError("no answer\nat all")
            return ask(row)

        return answer

    monkeypatch.setattr(TextClassificationTask, "library", library)


def test_texts_that_the_library_refuses_are_named_and_the_others_compared(
    make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_checkpoint("bert")
    caplog.set_level("INFO")
    whole = compare(folder).texts
    with monkeypatch.context() as changed:
        refusing(lambda text: text == TEXTS[0], changed)
        assert compare(folder).texts == whole - 1
    assert "refuses 1 of the texts, so they are not compared: row 1 (RuntimeError: no answer)" in caplog.text
    with monkeypatch.context() as changed:
        refusing(lambda text: text in TEXTS, changed)
        with pytest.raises(ExportError, match=r"answers none of the rows to verify on: row 1 \(RuntimeError: no answer\)"):
            compare(folder)


@pytest.mark.parametrize(
    "task", ["token-classification", "question-answering", "fill-mask", "zero-shot-classification", "multiple-choice"]
)
def test_every_task_answers_as_its_library(task: str, task_checkpoint: Callable[[str], Path]) -> None:
    columns: dict[str, tuple[list[str], ...]] = {
        "question-answering": (["what is good"] * len(TEXTS), TEXTS),
        "fill-mask": ([f"{text} [MASK]" for text in TEXTS],),
        "zero-shot-classification": (TEXTS, [json.dumps(["film", "food"])] * len(TEXTS)),
        "multiple-choice": (TEXTS, [json.dumps(["good", "bad film"])] * len(TEXTS)),
    }
    found = compare(task_checkpoint(task), columns.get(task, (TEXTS,)), task=task)
    assert found.texts > len(TEXTS) and found.max_difference < 1e-4


@pytest.fixture(scope="module")
def task_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a tiny random BERT with the head of a task."""

    def make(task: str) -> Path:
        import transformers

        folder = tmp_path_factory.mktemp(task)
        tokenizer = make_tokenizer("wordpiece")
        model = getattr(transformers, task_class(task).auto_model).from_config(make_config("bert", tokenizer))
        randomize(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make
