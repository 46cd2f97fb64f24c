"""Each ONNX variant against the PyTorch original on real rows: figures, and gates that noise does not flip."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from export import metric
from export.data import sample
from export.rows import EncodedRows
from serving.errors import ExportError
from serving.runtime.tasks.base import Arrays, Task

Logits = npt.NDArray[np.float32]
Run = Callable[[Arrays], Logits]
"""Model inputs of some rows → logits, the first axis of each is the row."""

MIN_AGREEMENT = {"fp32": 1.0, "fp16": 0.995, "int8": 0.97}
"""Least share of rows whose label equals the original's, by precision, where ``--min-agreement`` does not say otherwise."""
MAX_LOGIT_DIFFERENCE = 1e-3
"""For fp32, times the largest logit where that is above 1."""
TIE = 1e-4
"""Rows whose two best scores in the original are closer than this have no label to speak of: they count as agreeing."""
BATCH = 16
MIN_ROWS = 64
"""Fewer rows than these prove little: with every label of 64 equal, up to 5.6 % of all may still differ."""
SPEED_ROWS, SPEED_PASSES = 128, 3


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Args:
    max_metric_drop: points (hundredths) of the main metric.
    min_agreement: share of rows; None: as in :data:`MIN_AGREEMENT`. fp32 is always held to 1.
    """

    max_metric_drop: float = 0.5
    min_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What variants are held against.

    Args:
        logits: the original's, ``[rows, labels]``.
        labels: the right label positions, ``[rows]``.
    """

    task: Task
    logits: Logits
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure held against a limit.

    Args:
        value: None where it is no finite number, which JSON cannot say.
        interval: the figure's 95 % interval; None where it is exact.
        message: one line with the figure, its interval and the limit.
    """

    name: str
    limit: float
    value: float | None
    interval: tuple[float, float] | None
    passed: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What :func:`judge` found about one variant; both parts JSON-ready."""

    figures: dict[str, Any]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate held."""
        return all(gate.passed for gate in self.gates)

    def record(self, file: str) -> dict[str, Any]:
        """The variant's entry in the bundle's manifest."""
        verdict = "passed" if self.passed else "failed"
        return {"file": file, "verdict": verdict, "gates": [asdict(gate) for gate in self.gates], "figures": self.figures}


def logits_of(run: Run, rows: EncodedRows, *, batch_size: int, title: str) -> Logits:
    """Logits of all rows, computed ``batch_size`` at a time in the order given, so lengths are mixed as in serving."""
    console = Console(stderr=True)
    starts = track(range(0, len(rows), batch_size), title, console=console, transient=True, disable=not console.is_terminal)
    return np.concatenate([run(rows.feed(range(start, min(start + batch_size, len(rows))))) for start in starts])


def predictions(task: Task, logits: Logits) -> npt.NDArray[np.int64]:
    """Label positions ``[rows]`` as the served task decides them."""
    answers = task.answers(logits)
    positions = {label.encode(): index for index, label in enumerate(task.settings()["labels"])}
    return np.array([positions[label] for label in answers["LABEL"][:, 0]], dtype=np.int64)


def task_metrics(task: Task, logits: Logits, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Figures of the task's metric module, 0 to 1."""
    return metric.compute(task.metric, predictions(task, logits).tolist(), labels.tolist())


def require_finite(logits: Logits) -> None:
    """Check the original's logits ``[rows, …]``: nothing can be held against what is no number.

    Raises:
        ExportError: some rows' are infinite or no numbers.
    """
    broken = int((~_finite_rows(logits)).sum())
    if broken:
        raise ExportError(
            f"the checkpoint itself gives logits that are infinite or no numbers, for {broken} of {len(logits)} rows",
            hint="its weights are damaged, or its training diverged",
        )


def few_rows_warning(rows: int) -> str | None:
    """What to say of a verification on that many rows; None where they are enough."""
    if rows >= MIN_ROWS:
        return None
    unseen = metric.share_interval(0, rows)[1]
    return (
        f"verified on {rows} rows only, fewer than {MIN_ROWS}: that proves little. "
        f"Even where not one label differs on them, {unseen:.1%} of all may"
    )


def judge(precision: str, reference: Reference, variant: Logits, limits: Limits) -> Verdict:
    """Compare a variant with the original, row by row.

    Args:
        reference: its logits finite.
        variant: its logits ``[rows, labels]`` of the reference's rows. One where a logit is infinite or no number counts as
            wrong and as not agreeing.
    """
    task, original, labels = reference.task, reference.logits, reference.labels
    finite = _finite_rows(variant)
    shown = np.where(finite[:, None], variant, np.float32(0))  # the first label, as argmax gives of what is no number
    ours, theirs = predictions(task, shown), predictions(task, original)
    drop, interval = metric.paired_drop(theirs == labels, (ours == labels) & finite)
    scores = np.sort(task.answers(original)["SCORES"], axis=-1)
    ties = finite & (ours != theirs) & (scores[:, -1] - scores[:, -2] < TIE)
    agreeing = int((finite & (ours == theirs) | ties).sum())
    largest, mean = _differences(original, variant) if finite.all() else (None, None)
    figures = task_metrics(task, shown, labels) | {
        "metric_drop": 100 * drop,
        "label_agreement": agreeing / len(labels),
        "ties": int(ties.sum()),
        "max_logit_difference": largest,
        "mean_logit_difference": mean,
    }
    gates = [
        _finite_gate(int((~finite).sum()), len(labels)),
        _drop_gate(task.main_metric, 100 * drop, (100 * interval[0], 100 * interval[1]), limits.max_metric_drop),
        _agreement_gate(agreeing, len(labels), _least_agreement(precision, limits)),
    ]
    if precision == "fp32":
        gates.append(_difference_gate(largest, original))
    return Verdict(figures=figures, gates=tuple(gates))


def _finite_rows(logits: Logits) -> npt.NDArray[np.bool_]:
    return np.array([np.isfinite(row).all() for row in logits], dtype=np.bool_)


def _differences(original: Logits, variant: Logits) -> tuple[float, float]:
    """Largest and mean, in float64: two numbers near float32's ends differ by more than it holds."""
    difference = np.abs(variant.astype(np.float64) - original)
    return float(difference.max()), float(difference.mean())


def _least_agreement(precision: str, limits: Limits) -> float:
    if precision == "fp32" or limits.min_agreement is None:
        return MIN_AGREEMENT[precision]
    return limits.min_agreement


def _finite_gate(broken: int, rows: int) -> Gate:
    message = f"logits are infinite or no numbers for {broken} of {rows} rows"
    return Gate(name="finite", limit=0, value=broken, interval=None, passed=broken == 0, message=message)


def _drop_gate(name: str, drop: float, interval: tuple[float, float], limit: float) -> Gate:
    message = f"{name} drops by {drop:.2f} points (95 % interval {interval[0]:.2f} to {interval[1]:.2f}), allowed are {limit:g}"
    return Gate(name="metric_drop", limit=limit, value=drop, interval=interval, passed=interval[0] <= limit, message=message)


def _agreement_gate(agreeing: int, rows: int, limit: float) -> Gate:
    share = agreeing / rows
    low, high = metric.share_interval(agreeing, rows)
    message = (
        f"{agreeing} of {rows} labels agree with the original, {share:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}), wanted are {limit:.2%}"
    )
    return Gate(name="label_agreement", limit=limit, value=share, interval=(low, high), passed=high >= limit, message=message)


def _difference_gate(difference: float | None, original: Logits) -> Gate:
    """``difference``: None where a logit is infinite or no number."""
    limit = MAX_LOGIT_DIFFERENCE * max(1.0, float(np.abs(original).max()))
    passed = difference is not None and difference <= limit
    found = "cannot be compared" if difference is None else f"differ by up to {difference:.2g}"
    message = f"logits {found}, allowed are {limit:.2g}"
    return Gate(name="max_logit_difference", limit=limit, value=difference, interval=None, passed=passed, message=message)


def overflow_gate(tensors: Sequence[str]) -> Gate:
    """Nothing inside the fp16 graph may be infinite or no number on real rows."""
    named = f": {', '.join(tensors[:3])}" if tensors else ""
    return Gate(
        name="overflow",
        limit=0,
        value=len(tensors),
        interval=None,
        passed=not tensors,
        message=f"{len(tensors)} tensors overflow in fp16{named}",
    )


def speeds(runs: Mapping[str, Run], rows: EncodedRows, *, seed: int) -> dict[str, dict[str, Any]]:
    """How fast each model alone is, tokenization left out, on up to 128 rows drawn at random, in random order.

    The runs take turns, three passes each, and the fastest pass counts: whatever else the machine did slows all of them alike.

    Args:
        runs: by name, each set to one thread.

    Returns:
        By name: ``latency_ms``, the median for one row, and ``throughput``, rows/s by batch size ("1"; "16": rows of mixed
        length padded together).
    """
    chosen = sample(len(rows), SPEED_ROWS, seed)
    np.random.default_rng(seed).shuffle(chosen)
    feeds = {size: [rows.feed(chosen[start : start + size]) for start in range(0, len(chosen), size)] for size in (1, BATCH)}
    timings: dict[tuple[str, int], list[list[float]]] = {(name, size): [] for name in runs for size in feeds}
    for run in runs.values():
        _timed(run, feeds[1][:5] + feeds[BATCH][:1])  # first calls allocate
    for _ in range(SPEED_PASSES):
        for (name, size), passes in timings.items():
            passes.append(_timed(runs[name], feeds[size]))
    return {
        name: {
            "latency_ms": 1000 * median(min(timings[name, 1], key=sum)),
            "throughput": {str(size): len(chosen) / min(map(sum, timings[name, size])) for size in feeds},
        }
        for name in runs
    }


def _timed(run: Run, feeds: Sequence[Arrays]) -> list[float]:
    seconds = []
    for feed in feeds:
        started = time.perf_counter()
        run(feed)
        seconds.append(time.perf_counter() - started)
    return seconds
