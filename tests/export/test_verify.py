"""Intervals and gates: noise flips nothing, real losses fail."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import metric, model_timing, verify
from export.data import LabelledRows
from export.rows import EncodedRows
from export.tasks import load_task
from export.tasks._encoder import ExportedEncoderTask
from export.tasks.text_classification import MULTI_LABEL, REGRESSION, TextClassificationTask
from serving.errors import ExportError
from serving.manifests import VariantGate
from serving.runtime.types import Arrays, Origins
from tests.helpers.manifests import variant_figures
from tests.helpers.tasks import classification

TASK = load_task("text-classification", {"labels": ["negative", "positive"], "function_to_apply": "softmax", "pair": False})
LIMITS = verify.GateLimits()
LABELS = np.tile([0, 1], 500)


def logits_for(predicted: np.ndarray, margin: float = 2.0) -> Arrays:
    """Logits ``[rows, 2]`` that predict those labels."""
    return {"logits": np.where(np.eye(2, dtype=bool)[predicted], margin, 0).astype(np.float32)}


def flipped(labels: np.ndarray, start: int, count: int) -> np.ndarray:
    other = labels.copy()
    other[start : start + count] ^= 1
    return other


def against(
    original: Arrays, references: Sequence[Any] = tuple(LABELS.tolist()), task: ExportedEncoderTask = TASK
) -> verify.OriginalOutputs:
    return verify.OriginalOutputs(
        task=task, outputs=original, origins=Origins(np.arange(len(original["logits"]))), references=references
    )


def gates(precision: str, variant: np.ndarray, limits: verify.GateLimits = LIMITS) -> dict[str, VariantGate]:
    """Gates of a variant that predicts those labels where the original is always right."""
    return {
        gate.name: gate for gate in verify.verify_variant(precision, against(logits_for(LABELS)), logits_for(variant), limits).gates
    }


def test_a_main_metric_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = metric.compute
    monkeypatch.setattr(metric, "compute", lambda *given: compute(*given) | {"accuracy": float("nan")})
    with pytest.raises(ExportError, match="accuracy of the PyTorch checkpoint is nan"):
        verify.task_metrics(against(logits_for(LABELS)))
    with pytest.raises(ExportError, match="accuracy of int8 is nan"):
        verify.verify_variant("int8", against(logits_for(LABELS)), logits_for(LABELS), LIMITS)


def test_a_metric_that_overflows_is_recorded_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextClassificationTask, "extra_figures", lambda *_: {"perplexity": float("inf")})
    reference = against(logits_for(LABELS))
    assert verify.task_metrics(reference)["perplexity"] is None
    verdict = verify.verify_variant("fp32", reference, reference.outputs, LIMITS)
    assert verdict.passed and verdict.metrics["perplexity"] is None
    assert variant_figures(**verdict.metrics).metrics["perplexity"] is None


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_equal_answers_have_no_drop_but_prove_only_so_much(rows: int) -> None:
    """Nobody knows that no row of all the others differs: 0 of n may be as many as 1 - 0.025 ** (1 / n) of all."""
    answers = np.arange(rows) % 2 == 0
    drop, (low, high) = metric.paired_drop(answers, answers)
    most = 1 - 0.025 ** (1 / rows)
    assert (drop, low, high) == (0.0, pytest.approx(-most), pytest.approx(most))
    message = next(
        gate.message for gate in verify.verify_variant("int8", against(logits_for(LABELS)), logits_for(LABELS), LIMITS).gates[1:]
    )
    assert "drops by 0.00 points (95 % interval -0.37 to 0.37)" in message


def test_few_rows_are_said_to_prove_little() -> None:
    assert verify.few_rows_warning(verify.MIN_ROWS) is None
    warning = verify.few_rows_warning(40)
    assert warning is not None
    assert warning.startswith("verified on only 40 rows, fewer than 64, which is weak evidence")
    assert "8.8% of all rows may differ" in warning


def test_noise_does_not_fail_the_metric_gate_and_a_real_drop_does() -> None:
    original, variant = flipped(LABELS, 0, 20), flipped(LABELS, 20, 30)
    verdict = verify.verify_variant("int8", against(logits_for(original)), logits_for(variant), LIMITS)
    noise = next(gate for gate in verdict.gates if gate.name == "metric_drop")
    assert noise.value == pytest.approx(1.0), "twice the limit: 30 rows lost, 20 won"
    assert noise.passed
    real = gates("int8", flipped(LABELS, 0, 30))["metric_drop"]
    assert real.value == pytest.approx(3.0)
    assert not real.passed
    assert "accuracy drops by 3.00 points" in real.message
    assert gates("int8", flipped(LABELS, 0, 30), verify.GateLimits(max_metric_drop=3))["metric_drop"].passed


@pytest.mark.parametrize(
    ("precision", "disagreeing", "passed"),
    [
        ("fp32", 0, True),
        ("fp32", 1, False),
        ("fp16", 8, True),
        ("fp16", 15, False),
        ("int8", 35, True),
        ("int8", 50, False),
    ],
)
def test_agreement_gates_by_precision(precision: str, disagreeing: int, passed: bool) -> None:
    gate = gates(precision, flipped(LABELS, 0, disagreeing))["label_agreement"]
    assert gate.value == pytest.approx(1 - disagreeing / 1000)
    assert gate.passed is passed


def test_min_agreement_moves_the_gate_but_not_that_of_fp32() -> None:
    limits = verify.GateLimits(min_agreement=0.9)
    assert gates("int8", flipped(LABELS, 0, 100), limits)["label_agreement"].passed
    assert not gates("fp32", flipped(LABELS, 0, 1), limits)["label_agreement"].passed


def test_a_tie_in_the_original_is_no_disagreement() -> None:
    tied = logits_for(LABELS)
    tied["logits"][0] = (1.0, 1.0 - 1e-5)
    tied["logits"][1] = (1.0, 1.0 - 1e-2)
    other = tied["logits"].copy()
    other[:2] = other[:2, ::-1]
    verdict = verify.verify_variant("fp16", against(tied), {"logits": other}, LIMITS)
    assert verdict.ties == 1
    assert verdict.label_agreement == pytest.approx(0.999)


@pytest.mark.parametrize(("wrong", "passed"), [(5e-4, True), (5e-3, False), (float("nan"), False)])
def test_fp32_logits_must_be_those_of_the_original(wrong: float, passed: bool) -> None:
    variant = logits_for(LABELS, margin=1.0)
    variant["logits"][-1, 0] += wrong
    verdict = verify.verify_variant("fp32", against(logits_for(LABELS, margin=1.0)), variant, LIMITS)
    gate = next(gate for gate in verdict.gates if gate.name == "max_logit_difference")
    assert gate.passed is verdict.passed is passed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_fail_at_every_precision(precision: str, broken: float) -> None:
    """The label of such a row is the first, by accident: here the right one."""
    right = np.zeros(1000, dtype=np.int64)
    reference = against(logits_for(right), right.tolist())
    variant = logits_for(right)
    variant["logits"][:3] = broken
    verdict = verify.verify_variant(precision, reference, variant, verify.GateLimits(max_metric_drop=100, min_agreement=0))
    gate = next(gate for gate in verdict.gates if gate.name == "finite")
    assert not verdict.passed and not gate.passed
    assert gate.value == 3
    assert gate.message == "logits are NaN or infinite for 3 of 1000 rows"
    assert verdict.label_agreement == pytest.approx(0.997), "they agree with nothing"
    assert verdict.metric_drop == pytest.approx(0.3)
    assert verdict.max_logit_difference is verdict.mean_logit_difference is None


MANY = classification(("a", "b", "c"), "sigmoid", MULTI_LABEL)
NUMBERS = classification(("score",), "none", REGRESSION)


def drawn(rows: int, labels: int) -> Arrays:
    return {"logits": np.random.default_rng(1).normal(0, 2, (rows, labels)).astype(np.float32)}


def changed(outputs: Arrays, rows: slice, values: Any) -> Arrays:
    other = outputs["logits"].copy()
    other[rows] = values
    return {"logits": other}


def test_a_row_with_several_labels_agrees_where_all_of_them_do() -> None:
    original = drawn(400, 3)
    right = [np.flatnonzero(row > 0).tolist() for row in original["logits"]]
    reference = against(original, right, MANY)
    assert verify.task_metrics(reference) == {"f1_micro": 1, "f1_macro": 1, "exact": 1}
    original["logits"][0] = 4
    variant = changed(original, slice(0, 1), [4, 4, -4])
    verdict = verify.verify_variant("int8", reference, variant, LIMITS)
    assert verdict.label_agreement == pytest.approx(399 / 400)
    assert verdict.passed
    verdict = verify.verify_variant("int8", reference, changed(original, slice(0, 100), -original["logits"][:100]), LIMITS)
    gates = {gate.name: gate for gate in verdict.gates}
    assert not gates["metric_drop"].passed and not gates["label_agreement"].passed
    assert gates["metric_drop"].message.startswith("f1_micro drops by ")
    assert verdict.label_agreement == pytest.approx(0.75)


def test_a_score_at_the_threshold_is_a_tie() -> None:
    original = drawn(400, 3)
    original["logits"][:2] = [[3, -3, 1e-5], [3, -3, 1e-2]]
    variant = changed(original, slice(0, 2), [[3, -3, -1e-5], [3, -3, -1e-2]])
    verdict = verify.verify_variant("fp16", against(original, [[0]] * 400, MANY), variant, LIMITS)
    assert (verdict.ties, verdict.label_agreement) == (1, pytest.approx(399 / 400))


def test_numbers_agree_where_they_are_near_by_what_the_original_spans() -> None:
    original = drawn(400, 1)
    span = float(np.ptp(original["logits"]))
    reference = against(original, original["logits"][:, 0].tolist(), NUMBERS)
    for off, agreeing in ((0.04, 400), (0.06, 390)):
        verdict = verify.verify_variant(
            "int8", reference, changed(original, slice(0, 10), original["logits"][:10] + off * span), LIMITS
        )
        assert (verdict.label_agreement, verdict.ties) == (pytest.approx(agreeing / 400), 0)
        assert verdict.metrics["spearman"] > 0.99
    verdict = verify.verify_variant("int8", reference, changed(original, slice(0, 200), -original["logits"][:200]), LIMITS)
    drop = next(gate for gate in verdict.gates if gate.name == "metric_drop")
    assert not drop.passed
    assert drop.message.startswith("spearman drops by ")


def test_numbers_that_hardly_differ_agree() -> None:
    """An original that says the same of every row has no span to go by."""
    original = {"logits": np.full((100, 1), 0.3, dtype=np.float32)}
    verdict = verify.verify_variant("fp32", against(original, [0.3] * 100, NUMBERS), {"logits": original["logits"] + 5e-5}, LIMITS)
    assert verdict.label_agreement == 1


class Windowed(TextClassificationTask):
    """A request's answer is that of the best of its rows for the model."""

    def answers(self, outputs: Arrays, origins: Origins) -> Arrays:
        firsts = np.searchsorted(origins.sample_mapping, np.arange(origins.count))
        best = np.maximum.reduceat(outputs["logits"], firsts)
        return super().answers({"logits": best}, Origins(np.arange(len(best))))


def test_a_row_of_which_one_window_is_no_number_is_broken_as_a_whole() -> None:
    task = Windowed.from_settings({"labels": ["negative", "positive"], "function_to_apply": "softmax"})
    original = {"logits": np.array([[1, 0], [3, 2], [0, 1], [2, 0], [0, 5]], dtype=np.float32)}
    origins = Origins(np.array([0, 0, 1, 2, 2]))
    reference = verify.OriginalOutputs(task=task, outputs=original, origins=origins, references=[0, 1, 1])
    assert verify.task_metrics(reference)["accuracy"] == 1
    assert verify.verify_variant("fp32", reference, original, LIMITS).passed
    verdict = verify.verify_variant("int8", reference, changed(original, slice(1, 2), np.nan), LIMITS)
    assert next(gate.value for gate in verdict.gates if gate.name == "finite") == 1
    assert verdict.label_agreement == pytest.approx(2 / 3)
    assert verdict.metric_drop == pytest.approx(100 / 3)


class Twice(TextClassificationTask):
    """A labelled row takes two requests, and has the label of both or none that counts."""

    def predictions(self, answers: Arrays) -> list[Any]:
        first, second = answers["SCORES"].argmax(axis=-1).reshape(2, -1)
        return np.where(first == second, first, 2).tolist()

    def agreement(self, answers: Arrays, original: Arrays) -> np.ndarray:
        return super().agreement(answers, original).reshape(2, -1).mean(axis=0)

    def ties(self, original: Arrays) -> np.ndarray:
        return super().ties(original).reshape(2, -1).any(axis=0)


def test_a_row_that_takes_two_requests_is_judged_once() -> None:
    task = Twice.from_settings({"labels": ["negative", "positive"], "function_to_apply": "softmax"})
    original = logits_for(np.array([0, 1, 1, 0, 0, 1, 1, 0]))  # the first requests of four rows, then the second
    reference = against(original, [0, 1, 1, 0], task)
    assert verify.task_metrics(reference)["accuracy"] == 1
    half = verify.verify_variant("int8", reference, changed(original, slice(5, 6), [2, 0]), LIMITS)
    assert half.label_agreement == pytest.approx(3.5 / 4), "rows that agree in part count in part"
    broken = verify.verify_variant("int8", reference, changed(original, slice(5, 6), np.nan), LIMITS)
    assert next(gate.message for gate in broken.gates if gate.name == "finite").endswith("for 1 of 4 rows")
    assert broken.label_agreement == pytest.approx(3 / 4)


@pytest.mark.parametrize(("task", "references"), [(MANY, [[0]] * 100), (NUMBERS, [float(row) for row in range(100)])])
def test_figures_that_are_no_shares_fail_where_outputs_are_no_numbers(task: TextClassificationTask, references: list[Any]) -> None:
    original = drawn(100, len(task.labels))
    verdict = verify.verify_variant("int8", against(original, references, task), changed(original, slice(4, 5), np.nan), LIMITS)
    gates = {gate.name: gate for gate in verdict.gates}
    assert (gates["finite"].value, gates["finite"].passed) == (1, False)
    assert verdict.label_agreement == pytest.approx(0.99)
    assert all(map(math.isfinite, verdict.metrics.values()))


def test_finite_logits_pass_their_gate() -> None:
    assert gates("int8", LABELS)["finite"].passed


def test_an_original_that_gives_no_numbers_is_refused() -> None:
    verify.require_finite(logits_for(LABELS))
    broken = logits_for(LABELS)
    broken["logits"][7, 1] = np.nan
    with pytest.raises(ExportError, match=r"the PyTorch checkpoint gives NaN or infinite logits for 1 of 1000 rows"):
        verify.require_finite(broken)


def test_a_verdict_has_gates_and_the_figures_of_the_metric() -> None:
    verdict = verify.verify_variant("int8", against(logits_for(LABELS)), logits_for(flipped(LABELS, 0, 90)), LIMITS)
    assert not verdict.passed
    assert {gate.name: gate.passed for gate in verdict.gates} == {"finite": True, "metric_drop": False, "label_agreement": False}
    assert {"accuracy", "f1_macro", "f1_positive"} < set(verdict.metrics)


def test_overflow_gate_names_the_tensors() -> None:
    assert verify.overflow_gate([]).passed
    gate = verify.overflow_gate(["a", "b"])
    assert not gate.passed
    assert gate.message == "2 tensors overflow in fp16: a, b"


class Padded:
    """Five rows of 1 to 3 tokens, as EncodedRows gives them: ids are the row's number, padding is -1."""

    lengths = (2, 1, 3, 1, 2)

    def feed(self, indices: Sequence[int]) -> Arrays:
        longest = max(self.lengths[index] for index in indices)
        rows = [[index] * self.lengths[index] + [-1] * (longest - self.lengths[index]) for index in indices]
        return {"input_ids": np.array(rows, dtype=np.int64)}


TWO_AT_A_TIME = [range(2), range(2, 4), range(4, 5)]


def test_int8_is_judged_with_the_rows_of_its_own_request(tiny_checkpoint: Path) -> None:
    """Labels of one text are executed together, so their int8 scales are one another's; those of two texts are not."""
    from serving.runtime.tokenization import TextEncoder

    settings = {"entailment": 1, "contradiction": 0, "labels": ["good", "bad", "dull"]}
    task = load_task("zero-shot-classification", settings)
    encoder = TextEncoder(str(tiny_checkpoint / "tokenizer.json"), max_length=16, names=["input_ids"], padding={})
    rows = EncodedRows(LabelledRows(texts=(("good film", "bad film", "film"),), labels=(0, 1, 2)), task, encoder)
    assert len(rows.lengths) == 9
    assert rows.request_batches() == [range(3), range(3, 6), range(6, 9)]
    assert rows.batches(4) == [range(4), range(4, 8), range(8, 9)]


def test_outputs_of_all_rows_are_put_together() -> None:
    def run(feed: Arrays) -> Arrays:
        ids = feed["input_ids"].astype(np.float32)
        return {"first": ids[:, :1], "longest": np.full((len(ids), 2), ids.shape[1], dtype=np.float32)}

    found = verify.compute_outputs(run, Padded(), TASK, TWO_AT_A_TIME, title="")  # type: ignore[arg-type]
    assert found["first"].tolist() == [[0], [1], [2], [3], [4]]
    assert found["longest"][:, 0].tolist() == [2, 2, 3, 3, 2], "two at a time, in the order given"


def test_outputs_by_position_end_with_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model says of padding depends on its neighbours, so it is not what variants are held to."""
    monkeypatch.setattr(type(TASK.served), "token_level", True)

    def ones(feed: Arrays) -> Arrays:
        return {"logits": np.ones((*feed["input_ids"].shape, 4), dtype=np.float32)}

    found = verify.compute_outputs(ones, Padded(), TASK, TWO_AT_A_TIME, title="")["logits"]  # type: ignore[arg-type]
    assert found.shape == (5, 3, 4)
    assert found[:, :, 0].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]


def test_speeds_time_each_run_alike(tiny_checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.runtime.tokenization import TextEncoder

    encoder = TextEncoder(str(tiny_checkpoint / "tokenizer.json"), max_length=16, names=["input_ids"], padding={})
    texts = tuple(f"good film {'bad ' * index}" for index in range(40))
    rows = EncodedRows(LabelledRows(texts=(texts,), labels=(0,) * 40), TASK, encoder)
    monkeypatch.setattr(model_timing, "SPEED_ROWS", 128)
    clock = itertools.count()
    monkeypatch.setattr(model_timing.time, "perf_counter", lambda: float(next(clock)))
    seen: dict[str, list[tuple[int, ...]]] = {"a": [], "b": []}
    runs = {name: (lambda feed, name=name: seen[name].append(feed["input_ids"].shape)) for name in seen}
    measured = model_timing.speeds(runs, rows, seed=0)
    assert seen["a"] == seen["b"], "the same rows in the same order"
    assert measured["a"].latency_ms == 1000.0
    assert (measured["a"].throughput.one_by_one, measured["a"].throughput.batched) == (1.0, pytest.approx(40 / 3))
