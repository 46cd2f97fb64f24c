"""Intervals and gates: noise flips nothing, real losses fail."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from export import metric, verify
from export.data import LabelledRows
from export.rows import EncodedRows
from serving.errors import ExportError
from serving.runtime.tasks import load_task

TASK = load_task("text-classification", {"labels": ["negative", "positive"], "function_to_apply": "softmax", "pair": False})
LIMITS = verify.Limits()
LABELS = np.tile([0, 1], 500)


def logits_for(predicted: np.ndarray, margin: float = 2.0) -> verify.Logits:
    """Logits ``[rows, 2]`` that predict those labels."""
    return np.where(np.eye(2, dtype=bool)[predicted], margin, 0).astype(np.float32)


def flipped(labels: np.ndarray, start: int, count: int) -> np.ndarray:
    other = labels.copy()
    other[start : start + count] ^= 1
    return other


def against(original: verify.Logits) -> verify.Reference:
    return verify.Reference(task=TASK, logits=original, labels=LABELS)


def gates(precision: str, variant: np.ndarray, limits: verify.Limits = LIMITS) -> dict[str, verify.Gate]:
    """Gates of a variant that predicts those labels where the original is always right."""
    return {gate.name: gate for gate in verify.judge(precision, against(logits_for(LABELS)), logits_for(variant), limits).gates}


def test_metric_module_is_local_and_right() -> None:
    figures = metric.compute("classification", [0, 0, 1, 2], [0, 1, 1, 2])
    assert figures == {"accuracy": pytest.approx(0.75), "f1": pytest.approx((2 / 3 + 2 / 3 + 1) / 3)}


def test_share_interval_is_exact() -> None:
    low, high = metric.share_interval(970, 1000)
    assert (low, high) == (pytest.approx(0.95750, abs=1e-4), pytest.approx(0.97970, abs=1e-4))
    assert metric.share_interval(1000, 1000)[1] == 1
    assert metric.share_interval(999, 1000)[1] < 1


def test_paired_interval_covers_the_true_drop() -> None:
    """Simulated 400 times: the 95 % interval misses the truth about as rarely as it says."""
    draw = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        kind = draw.choice(4, size=300, p=[0.8, 0.06, 0.02, 0.12])  # both right, only the original, only the variant, both wrong
        drop, (low, high) = metric.paired_drop(np.isin(kind, (0, 1)), np.isin(kind, (0, 2)))
        assert low <= drop <= high
        missed += not low <= 0.04 <= high
    assert missed <= 400 * 0.05 + 3 * (400 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_equal_answers_have_no_drop_but_prove_only_so_much(rows: int) -> None:
    """Nobody knows that no row of all the others differs: 0 of n may be as many as 1 - 0.025 ** (1 / n) of all."""
    answers = np.arange(rows) % 2 == 0
    drop, (low, high) = metric.paired_drop(answers, answers)
    most = 1 - 0.025 ** (1 / rows)
    assert (drop, low, high) == (0.0, pytest.approx(-most), pytest.approx(most))
    message = next(gate.message for gate in verify.judge("int8", against(logits_for(LABELS)), logits_for(LABELS), LIMITS).gates[1:])
    assert "drops by 0.00 points (95 % interval -0.37 to 0.37)" in message


def test_few_rows_are_said_to_prove_little() -> None:
    assert verify.few_rows_warning(verify.MIN_ROWS) is None
    warning = verify.few_rows_warning(40)
    assert warning is not None
    assert warning.startswith("verified on 40 rows only, fewer than 64: that proves little")
    assert "8.8% of all may" in warning


def test_noise_does_not_fail_the_metric_gate_and_a_real_drop_does() -> None:
    original, variant = flipped(LABELS, 0, 20), flipped(LABELS, 20, 30)
    verdict = verify.judge("int8", against(logits_for(original)), logits_for(variant), LIMITS)
    noise = next(gate for gate in verdict.gates if gate.name == "metric_drop")
    assert noise.value == pytest.approx(1.0), "twice the limit: 30 rows lost, 20 won"
    assert noise.passed
    real = gates("int8", flipped(LABELS, 0, 30))["metric_drop"]
    assert real.value == pytest.approx(3.0)
    assert not real.passed
    assert "accuracy drops by 3.00 points" in real.message
    assert gates("int8", flipped(LABELS, 0, 30), verify.Limits(max_metric_drop=3))["metric_drop"].passed


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
    limits = verify.Limits(min_agreement=0.9)
    assert gates("int8", flipped(LABELS, 0, 100), limits)["label_agreement"].passed
    assert not gates("fp32", flipped(LABELS, 0, 1), limits)["label_agreement"].passed


def test_a_tie_in_the_original_is_no_disagreement() -> None:
    tied = logits_for(LABELS)
    tied[0] = (1.0, 1.0 - 1e-5)
    tied[1] = (1.0, 1.0 - 1e-2)
    other = tied.copy()
    other[:2] = other[:2, ::-1]
    verdict = verify.judge("fp16", against(tied), other, LIMITS)
    assert verdict.figures["ties"] == 1
    assert verdict.figures["label_agreement"] == pytest.approx(0.999)


@pytest.mark.parametrize(("wrong", "passed"), [(5e-4, True), (5e-3, False), (float("nan"), False)])
def test_fp32_logits_must_be_those_of_the_original(wrong: float, passed: bool) -> None:
    variant = logits_for(LABELS, margin=1.0)
    variant[-1, 0] += wrong
    verdict = verify.judge("fp32", against(logits_for(LABELS, margin=1.0)), variant, LIMITS)
    gate = next(gate for gate in verdict.gates if gate.name == "max_logit_difference")
    assert gate.passed is verdict.passed is passed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_fail_at_every_precision(precision: str, broken: float) -> None:
    """The label of such a row is the first, by accident: here the right one."""
    right = np.zeros(1000, dtype=np.int64)
    reference = verify.Reference(task=TASK, logits=logits_for(right), labels=right)
    variant = logits_for(right)
    variant[:3] = broken
    verdict = verify.judge(precision, reference, variant, verify.Limits(max_metric_drop=100, min_agreement=0))
    gate = next(gate for gate in verdict.gates if gate.name == "finite")
    assert not verdict.passed and not gate.passed
    assert gate.value == 3
    assert gate.message == "logits are infinite or no numbers for 3 of 1000 rows"
    assert verdict.figures["label_agreement"] == pytest.approx(0.997), "they agree with nothing"
    assert verdict.figures["metric_drop"] == pytest.approx(0.3)
    record = json.dumps(verdict.record("model.onnx"), allow_nan=False)
    assert json.loads(record)["figures"]["max_logit_difference"] is None


def test_finite_logits_pass_their_gate() -> None:
    assert gates("int8", LABELS)["finite"].passed


def test_an_original_that_gives_no_numbers_is_refused() -> None:
    verify.require_finite(logits_for(LABELS))
    broken = logits_for(LABELS)
    broken[7, 1] = np.nan
    with pytest.raises(ExportError, match=r"the checkpoint itself gives logits .* for 1 of 1000 rows"):
        verify.require_finite(broken)


def test_record_is_what_the_bundle_promises() -> None:
    verdict = verify.judge("int8", against(logits_for(LABELS)), logits_for(flipped(LABELS, 0, 90)), LIMITS)
    record = verdict.record("int8/model.onnx")
    assert (record["file"], record["verdict"]) == ("int8/model.onnx", "failed")
    assert {gate["name"]: gate["passed"] for gate in record["gates"]} == {
        "finite": True,
        "metric_drop": False,
        "label_agreement": False,
    }
    assert set(record["figures"]) == {
        "accuracy",
        "f1",
        "metric_drop",
        "label_agreement",
        "ties",
        "max_logit_difference",
        "mean_logit_difference",
    }


def test_overflow_gate_names_the_tensors() -> None:
    assert verify.overflow_gate([]).passed
    gate = verify.overflow_gate(["a", "b"])
    assert not gate.passed
    assert gate.message == "2 tensors overflow in fp16: a, b"


def test_speeds_time_each_run_alike(tiny_checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    from serving.runtime.tokenization import TextEncoder

    encoder = TextEncoder(str(tiny_checkpoint / "tokenizer.json"), max_length=16, names=["input_ids"], padding={})
    texts = tuple(f"good film {'bad ' * index}" for index in range(40))
    rows = EncodedRows(LabelledRows(texts=(texts,), labels=(0,) * 40), TASK, encoder)
    clock = itertools.count()
    monkeypatch.setattr(verify.time, "perf_counter", lambda: float(next(clock)))
    seen: dict[str, list[tuple[int, ...]]] = {"a": [], "b": []}
    runs = {name: (lambda feed, name=name: seen[name].append(feed["input_ids"].shape)) for name in seen}
    measured = verify.speeds(runs, rows, seed=0)
    assert seen["a"] == seen["b"], "the same rows in the same order"
    assert measured["a"] == {"latency_ms": 1000.0, "throughput": {"1": 1.0, "16": pytest.approx(40 / 3)}}
