"""What users see of a variant: whole answers, scores of equal labels, and near ties that count as equal."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.inputs import BenchmarkRows
from benchmarks.quality import evaluate
from export import metric, verify
from export.tasks import load_task
from export.tasks._encoder import ExportedEncoderTask
from export.tasks.text_classification import TextClassificationTask
from export.variant_table import variant_table
from serving.manifests import VariantGate
from serving.runtime.types import Arrays, Flags, Origins
from tests.helpers.manifests import bundle_manifest, variant_figures

LABELS = ["O", "B-film", "I-film", "B-star", "plain"]
TAGGER = load_task("token-classification", {"labels": LABELS})
SENTIMENT = {"labels": ["negative", "positive"], "function_to_apply": "softmax"}


def tagged(*rows: list[tuple[str, float]]) -> Arrays:
    """Answers with the label and score of each token, one character long."""
    items = [
        [{"entity": label, "score": score, "index": at, "start": at, "end": at + 1} for at, (label, score) in enumerate(row)]
        for row in rows
    ]
    return {"ENTITIES": column(items)}


def column(rows: list[Any]) -> np.ndarray:
    return np.array([[json.dumps(row).encode()] for row in rows], dtype=object)


def test_one_wrong_word_is_a_wrong_row() -> None:
    sure = [("B-film", 0.9), ("I-film", 0.9), ("O", 0.9), ("B-star", 0.9)]
    original = tagged(sure, sure, sure, [("O", 0.9)], [])
    variant = tagged(
        sure,
        [*sure[:3], ("O", 0.6)],
        [("I-film", 0.9), *sure[1:]],  # the same entity: it begins where no other one ends
        [("plain", 0.7)],
        [],
    )
    assert TAGGER.agreement(variant, original).tolist() == pytest.approx([1, 2 / 3, 2 / 3, 0, 1])
    assert TAGGER.row_agreement(variant, original).tolist() == [True, False, True, False, True]
    split = tagged([("B-film", 0.9), ("B-film", 0.9)])
    joined = tagged([("B-film", 0.9), ("I-film", 0.9)])
    assert TAGGER.row_agreement(split, joined).tolist() == [False]
    by_words = load_task("token-classification", {"labels": LABELS, "aggregation_strategy": "first"})
    assert by_words.row_agreement(variant, original).tolist() == [True, False, False, False, True], (
        "tokens do not tell its entities"
    )


def test_labels_are_tied_only_at_half_of_the_probability() -> None:
    original = tagged([("B-film", 0.50001)], [("B-film", 0.99999)], [("B-film", 0.3)])
    variant = tagged([("O", 0.50002)], [("B-star", 0.99998)], [("O", 0.30001)])
    assert TAGGER.near_ties(variant, original) == 2
    assert TAGGER.agreement(variant, original).tolist() == [1, 0, 1], "two labels that are both almost certain are no tie"
    assert TAGGER.row_agreement(variant, original).tolist() == [True, False, True]
    assert TAGGER.near_ties(original, original) == 0


def test_score_changes_of_every_task() -> None:
    original = tagged([("B-film", 0.9), ("O", 0.9)], [("B-star", 0.8)])
    assert TAGGER.score_changes(tagged([("B-film", 0.44), ("O", 0.1)], [("O", 0.9)]), original).tolist() == pytest.approx([0.46])
    sentiment = load_task("text-classification", SENTIMENT)
    scores = [{"SCORES": np.array(rows, np.float32)} for rows in ([[0.4, 0.6], [0.9, 0.1]], [[0.9, 0.1], [0.7, 0.3]])]
    assert sentiment.score_changes(*scores).tolist() == pytest.approx([0.5, 0.2]), "the probability of the original's label"
    for settings in ({"problem_type": "regression"}, {"function_to_apply": "none"}):
        assert load_task("text-classification", SENTIMENT | settings).score_changes(*scores) is None
    many = load_task("text-classification", SENTIMENT | {"problem_type": "multi_label_classification"})
    assert many.score_changes(*scores).tolist() == pytest.approx([0.5, 0.2])
    reader = load_task("question-answering", {})
    spans = [
        {name: np.array(values)[:, None] for name, values in zip(("START", "END", "SCORE"), rows, strict=True)}
        for rows in (([1, 5], [2, 6], [0.5, 0.5]), ([1, 4], [2, 6], [0.7, 0.1]))
    ]
    assert reader.score_changes(*spans).tolist() == pytest.approx([0.2])
    choice = load_task("multiple-choice", {})
    answers = [{"SCORES": column([one]), "CHOICE": np.array([[best]])} for one, best in (([0.4, 0.6], 1), ([0.8, 0.2], 0))]
    assert choice.score_changes(*answers).tolist() == pytest.approx([0.4])
    masks = [
        {"PREDICTIONS": column([[{"token": token, "score": score}, {"token": 9, "score": 0.1}] for token, score in rows])}
        for rows in ([(1, 0.5), (2, 0.5)], [(1, 0.75), (3, 0.9)])
    ]
    assert load_task("fill-mask", {}).score_changes(*masks).tolist() == pytest.approx([0.25])
    assert load_task("feature-extraction", {}).score_changes({}, {}) is None


def ranked(*rows: dict[str, float]) -> Arrays:
    ordered = [sorted(row.items(), key=lambda item: -item[1]) for row in rows]
    return {
        "LABELS": column([[label for label, _ in row] for row in ordered]),
        "SCORES": column([[s for _, s in row] for row in ordered]),
    }


def test_all_candidate_labels_have_the_same_order() -> None:
    task = load_task("zero-shot-classification", {"entailment": 0, "contradiction": 1})
    original = ranked({"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 0.6, "b": 0.3, "c": 0.1}, {"a": 0.6, "b": 0.2, "c": 0.19995})
    variant = ranked({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.9, "b": 0.04, "c": 0.06}, {"a": 0.5, "b": 0.2, "c": 0.3})
    assert task.agreement(variant, original).tolist() == [1, 1, 1]
    assert task.row_agreement(variant, original).tolist() == [True, False, True], "tied labels have either order"
    assert task.score_changes(variant, original).tolist() == pytest.approx([0.1, 0.3, 0.1])


class Ordered(TextClassificationTask):
    """The whole answer of a row also says whether the best score is above 0.9."""

    def row_agreement(self, answers: Arrays, original: Arrays) -> Flags:
        found: Flags = (answers["SCORES"].max(axis=-1) > 0.9) == (original["SCORES"].max(axis=-1) > 0.9)
        return found


ROWS = 1000


def verdict(
    task: ExportedEncoderTask, precision: str, changed: int, **limits: float
) -> tuple[verify.VariantVerdict, VariantGate | None]:
    """Verify a variant that has the original's labels, of which ``changed`` have a lower score."""
    labels = np.tile([0, 1], ROWS // 2)
    original = np.where(np.eye(2, dtype=bool)[labels], 4, 0).astype(np.float32)
    variant = original.copy()
    variant[:changed] /= 4
    outputs = verify.OriginalOutputs(
        task=task, outputs={"logits": original}, origins=Origins(np.arange(ROWS)), references=labels.tolist()
    )
    found = verify.verify_variant(precision, outputs, {"logits": variant}, verify.GateLimits(**limits))
    return found, next((gate for gate in found.gates if gate.name == "row_agreement"), None)


@pytest.mark.parametrize(
    ("precision", "changed", "passed"), [("fp16", 10, True), ("fp16", 25, False), ("int8", 110, True), ("int8", 130, False)]
)
def test_whole_rows_have_a_gate_of_their_own(precision: str, changed: int, passed: bool) -> None:
    found, gate = verdict(Ordered.from_settings(SENTIMENT), precision, changed)
    assert found.label_agreement == 1 and found.row_agreement == pytest.approx(1 - changed / ROWS)
    assert gate is not None and gate.passed is passed is found.passed
    assert gate.message.startswith(f"the whole answers to {ROWS - changed} of 1000 rows agree with the original's, ")
    assert gate.limit == verify.MIN_ROW_AGREEMENT[precision]


def test_the_limit_of_whole_rows_falls_with_the_number_of_labels() -> None:
    class Many(Ordered):
        labels_per_row = 6

    _, gate = verdict(Many.from_settings(SENTIMENT), "int8", 1)
    assert gate is not None and gate.limit == pytest.approx(0.81)
    zero_shot = load_task("zero-shot-classification", {"entailment": 0, "contradiction": 1, "labels": ["a", "b"]})
    assert isinstance(zero_shot, ExportedEncoderTask) and zero_shot.labels_per_row == 2


def test_the_limit_of_whole_rows_is_an_option_except_for_fp32() -> None:
    task = Ordered.from_settings(SENTIMENT)
    assert verdict(task, "int8", 300, min_row_agreement=0.7)[0].passed
    assert not verdict(task, "int8", 50, min_row_agreement=0.99)[0].passed
    _, gate = verdict(task, "fp32", 1, min_row_agreement=0.5)
    assert gate is not None and not gate.passed and gate.limit == 1


def test_a_task_of_one_label_has_no_second_agreement_and_shows_its_scores() -> None:
    found, gate = verdict(load_task("text-classification", SENTIMENT), "int8", 9)
    assert gate is None and found.row_agreement is None and found.passed
    change = 1 / (1 + np.exp(-4)) - 1 / (1 + np.exp(-1))
    assert (found.p99_score_change, found.max_score_change) == (0, pytest.approx(change, abs=1e-5)), "fewer than 1 %"
    found, _ = verdict(load_task("text-classification", SENTIMENT), "int8", 11)
    assert found.p99_score_change == pytest.approx(change, abs=1e-5)


def test_the_tail_of_no_values() -> None:
    assert metric.tail(None) == metric.tail(np.array([])) == (None, None)
    assert metric.tail(np.arange(1, 201, dtype=np.float64)) == (198, 200)


def test_the_table_shows_rows_changes_and_ties() -> None:
    def table(**changes: Any) -> list[str]:
        record = {"file": "int8/model.onnx", "verdict": "passed", "gates": (), "figures": variant_figures(**changes)}
        return variant_table(bundle_manifest(precisions={"int8": record}))

    head, original, line, *notes = table(
        row_agreement=0.864, p99_score_change=0.2, max_score_change=0.4567, ties=2, label_agreement=0.9899
    )
    assert head.split() == ["accuracy", "agreement", "rows", "score", "change", "logit", "diff", "MB", "ms", "rows/s"]
    assert original.split()[:5] == ["PyTorch", "0.9000", "100.00%", "100.0%", "0"]
    assert line.split()[:6] == ["int8", "0.9000", "98.99%", "86.4%", "0.2", "(0.46)"]
    assert len({len(one) for one in (head, original, line)}) == 1
    assert notes[-1] == "int8: 2 near ties count as agreeing" and "rows: whose whole answer agrees" in notes[0]
    head, _, line, *notes = table(p99_score_change=None, max_score_change=None, ties=1)
    assert head.split()[:3] == ["accuracy", "agreement", "score"] and line.split()[3] == "-" and "whole" not in notes[0]
    assert notes[-1] == "int8: 1 near tie counts as agreeing"
    assert len(table()) == 5, "no near ties, no line"


def test_a_benchmark_has_the_same_figures() -> None:
    row = [("B-film", 0.9), ("I-film", 0.9)]
    rows = BenchmarkRows(
        timed={None: []}, labelled=[["ab"]] * 2, references=[{"start": [0, 1], "end": [1, 2], "label": ["B-film", "I-film"]}] * 2
    )
    found = evaluate(TAGGER, rows, tagged(row, [("B-film", 0.6), ("O", 0.6)]), tagged(row, row))
    assert (found.agreement, found.row_agreement) == (0.75, 0.5)
    assert (found.p99_score_change, found.max_score_change) == (pytest.approx(0.3), pytest.approx(0.3))
    own = evaluate(TAGGER, rows, tagged(row, row), None)
    assert (own.row_agreement, own.max_score_change) == (1, 0)
