"""Each ONNX variant against the PyTorch original on real rows: figures, and gates that noise does not flip."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from serving.manifests import Throughput, VariantGate
from serving.runtime.tasks.base import Arrays, Origins, Task

Run = Callable[[Arrays], Arrays]
"""Model inputs of some rows → the outputs that the task reads, the first axis of each is the row."""

MIN_AGREEMENT = {"fp32": 1.0, "fp16": 0.995, "int8": 0.97}
"""Least share of rows whose label equals the original's, by precision, where ``--min-agreement`` does not say otherwise."""
MAX_LOGIT_DIFFERENCE = 1e-3
"""For fp32, times the largest logit where that is above 1."""
BATCH = 16
ROUNDING = 1e-6
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
        outputs: the original's, ``[model rows, …]``.
        origins: of the model's rows.
        references: what predictions are held against, one per labelled row.
    """

    task: Task
    outputs: Arrays
    origins: Origins
    references: Sequence[Any]

    def answers(self, outputs: Arrays) -> Arrays:
        """As the served task gives them where a request asks for what judges them."""
        return self.task.answers(outputs, self.origins, self.task.request_options(self.task.judged_options))


@dataclass(frozen=True, kw_only=True)
class VariantVerdict:
    """What :func:`judge` found about one variant.

    Attributes:
        metrics: Figures of the task's metrics by name.
        metric_drop: Points (hundredths) of the main metric that the variant loses.
        label_agreement: Share of rows whose answer equals the original's.
        ties: Number of rows that count as agreeing because the original's best two labels are tied.
        max_logit_difference: Largest difference from the original's outputs; None if an output is NaN or infinite.
        mean_logit_difference: Mean difference; None if an output is NaN or infinite.
        gates: The gates.
    """

    metrics: dict[str, float]
    metric_drop: float
    label_agreement: float
    ties: int
    max_logit_difference: float | None
    mean_logit_difference: float | None
    gates: tuple[VariantGate, ...]

    @property
    def passed(self) -> bool:
        """Whether all gates held."""
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Speed of a model alone on one thread, without tokenization.

    Attributes:
        latency_ms: Median latency of one row, ms.
        throughput: Rows per second.
    """

    latency_ms: float
    throughput: Throughput


def outputs_of(run: Run, rows: EncodedRows, task: Task, batches: Sequence[range], *, title: str) -> Arrays:
    """What a model says of all rows, computed batch by batch in the order given, so lengths are mixed as in serving.

    Returns:
        The outputs ``[model rows, …]``; where an axis is the position, rows are padded with zeros to the longest of all, and what
        the model says of padding is zero too.
    """
    console = Console(stderr=True)
    lengths = rows.lengths
    found: dict[str, Any] = {}
    for batch in track(batches, title, console=console, transient=True, disable=not console.is_terminal):
        for name, values in run(rows.feed(batch)).items():
            if task.token_level:
                shape = (len(lengths), max(lengths), *values.shape[2:])
                target = found.setdefault(name, np.zeros(shape, dtype=np.float32))
                for index, row in zip(batch, values, strict=True):
                    target[index, : lengths[index]] = row[: lengths[index]]
            else:
                found.setdefault(name, []).append(values)
    return found if task.token_level else {name: np.concatenate(parts) for name, parts in found.items()}


def task_metrics(reference: Reference) -> dict[str, float]:
    """Figures of the task's metric module for the original."""
    task, outputs = reference.task, reference.outputs
    found = metric.compute(task.metric, task.predictions(reference.answers(outputs)), reference.references)
    return found | task.figures(outputs, outputs, reference.origins, reference.references)


def require_finite(outputs: Arrays) -> None:
    """Check what the original says, ``[model rows, …]``: nothing can be held against what is no number.

    Raises:
        ExportError: some of it is infinite or no number.
    """
    finite = _finite_rows(outputs)
    if not finite.all():
        raise ExportError(
            f"the checkpoint itself gives {' and '.join(outputs)} that are infinite or no numbers, for {(~finite).sum()} of "
            f"{len(finite)} rows",
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


def judge(precision: str, reference: Reference, variant: Arrays, limits: Limits) -> VariantVerdict:
    """Compare a variant with the original, row by row.

    Args:
        reference: its outputs finite.
        variant: its outputs for the reference's rows. Rows where one is infinite or no number do not
            agree, count as wrong in the share of right rows, and as zeros in any other metric; they fail a gate of their own.
    """
    task, rows = reference.task, len(reference.references)
    finite = _finite_rows(variant)
    shown = variant
    if not finite.all():
        shown = {name: np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) for name, values in variant.items()}
    asked = np.ones(reference.origins.count, dtype=np.bool_)
    asked[reference.origins.owners[~finite]] = False
    whole = np.logical_and.reduce(asked.reshape(-1, rows))  # a labelled row may take several requests
    ours, theirs = reference.answers(shown), reference.answers(reference.outputs)
    drop, interval = _drop(reference, task.predictions(theirs), task.predictions(ours), whole)
    agreement = task.agreement(ours, theirs)
    ties = whole & (agreement < 1) & task.ties(theirs)
    agreeing = float(np.where(whole, np.where(ties, 1, agreement), 0).sum())
    largest, mean = _differences(reference.outputs, variant) if finite.all() else (None, None)
    metrics = metric.compute(task.metric, task.predictions(ours), reference.references)
    metrics |= task.figures(shown, reference.outputs, reference.origins, reference.references)
    gates = [
        _finite_gate(int((~whole).sum()), rows),
        _drop_gate(task.main_metric, 100 * drop, (100 * interval[0], 100 * interval[1]), limits.max_metric_drop),
        _agreement_gate(agreeing, rows, _least_agreement(precision, limits)),
    ]
    if precision == "fp32":
        gates.append(_difference_gate(largest, max(float(np.abs(values).max()) for values in reference.outputs.values())))
    return VariantVerdict(
        metrics=metrics,
        metric_drop=100 * drop,
        label_agreement=agreeing / rows,
        ties=int(ties.sum()),
        max_logit_difference=largest,
        mean_logit_difference=mean,
        gates=tuple(gates),
    )


def _drop(
    reference: Reference, original: Sequence[Any], variant: Sequence[Any], whole: npt.NDArray[np.bool_]
) -> tuple[float, tuple[float, float]]:
    """Of the main metric, with its interval: exact where it is the share of right rows."""
    task, wanted = reference.task, reference.references
    if task.main_metric != "accuracy":
        return metric.bootstrapped_drop(task.metric, task.main_metric, original, variant, wanted)
    theirs, ours = (
        np.array([one == right for one, right in zip(predicted, wanted, strict=True)]) for predicted in (original, variant)
    )
    return metric.paired_drop(theirs, ours & whole)


def _finite_rows(outputs: Arrays) -> npt.NDArray[np.bool_]:
    """``[model rows]``."""
    each = [np.isfinite(values).reshape(len(values), -1).all(axis=-1) for values in outputs.values()]
    found: npt.NDArray[np.bool_] = np.logical_and.reduce(each)
    return found


def _differences(original: Arrays, variant: Arrays) -> tuple[float, float]:
    """Largest and mean over all outputs, in float64: two numbers near float32's ends differ by more than it holds."""
    largest = total = 0.0
    for name, values in original.items():
        for row, other in zip(values, variant[name], strict=True):  # all at once they may be more than fits into memory
            differences = np.abs(other.astype(np.float64) - row)
            largest, total = max(largest, float(differences.max())), total + float(differences.sum())
    return largest, total / sum(values.size for values in original.values())


def _least_agreement(precision: str, limits: Limits) -> float:
    if precision == "fp32" or limits.min_agreement is None:
        return MIN_AGREEMENT[precision]
    return limits.min_agreement


def _finite_gate(broken: int, rows: int) -> VariantGate:
    message = f"logits are infinite or no numbers for {broken} of {rows} rows"
    return VariantGate(name="finite", limit=0, value=broken, interval=None, passed=broken == 0, message=message)


def _drop_gate(name: str, drop: float, interval: tuple[float, float], limit: float) -> VariantGate:
    message = f"{name} drops by {drop:.2f} points (95 % interval {interval[0]:.2f} to {interval[1]:.2f}), allowed are {limit:g}"
    return VariantGate(name="metric_drop", limit=limit, value=drop, interval=interval, passed=interval[0] <= limit, message=message)


def _agreement_gate(agreeing: float, rows: int, limit: float) -> VariantGate:
    """``agreeing``: rows, those that agree in part counted in part; the interval is that of the whole ones."""
    share = agreeing / rows
    low, high = metric.share_interval(int(agreeing + ROUNDING), rows)
    message = (
        f"{agreeing:g} of {rows} labels agree with the original, {share:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}), wanted are {limit:.2%}"
    )
    return VariantGate(
        name="label_agreement", limit=limit, value=share, interval=(low, high), passed=high >= limit, message=message
    )


def _difference_gate(difference: float | None, largest: float) -> VariantGate:
    """``difference``: None where a logit is infinite or no number. ``largest``: of the original's."""
    limit = MAX_LOGIT_DIFFERENCE * max(1.0, largest)
    passed = difference is not None and difference <= limit
    found = "cannot be compared" if difference is None else f"differ by up to {difference:.2g}"
    message = f"logits {found}, allowed are {limit:.2g}"
    return VariantGate(name="max_logit_difference", limit=limit, value=difference, interval=None, passed=passed, message=message)


def overflow_gate(tensors: Sequence[str]) -> VariantGate:
    """Nothing inside the fp16 graph may be infinite or no number on real rows."""
    named = f": {', '.join(tensors[:3])}" if tensors else ""
    return VariantGate(
        name="overflow",
        limit=0,
        value=len(tensors),
        interval=None,
        passed=not tensors,
        message=f"{len(tensors)} tensors overflow in fp16{named}",
    )


def speeds(runs: Mapping[str, Run], rows: EncodedRows, *, seed: int) -> dict[str, Timing]:
    """How fast each model alone is, tokenization left out, on up to 128 rows drawn at random, in random order.

    The runs take turns, three passes each, and the fastest pass counts: whatever else the machine did slows all of them alike.

    Args:
        runs: by name, each set to one thread.

    Returns:
        By name: ``latency_ms``, the median for one row, and ``throughput``, rows/s by batch size ("1"; "16": rows of mixed
        length padded together).
    """
    chosen = sample(len(rows.lengths), SPEED_ROWS, seed)
    np.random.default_rng(seed).shuffle(chosen)
    feeds = {size: [rows.feed(chosen[start : start + size]) for start in range(0, len(chosen), size)] for size in (1, BATCH)}
    timings: dict[tuple[str, int], list[list[float]]] = {(name, size): [] for name in runs for size in feeds}
    for run in runs.values():
        _timed(run, feeds[1][:5] + feeds[BATCH][:1])  # first calls allocate
    for _ in range(SPEED_PASSES):
        for (name, size), passes in timings.items():
            passes.append(_timed(runs[name], feeds[size]))
    return {name: _timing({size: timings[name, size] for size in feeds}, len(chosen)) for name in runs}


def _timing(passes: Mapping[int, list[list[float]]], rows: int) -> Timing:
    """Derive the figures of one model from the seconds of each call, by batch size and pass."""
    throughput = {size: rows / min(map(sum, found)) for size, found in passes.items()}
    return Timing(
        latency_ms=1000 * median(min(passes[1], key=sum)),
        throughput=Throughput(one_by_one=throughput[1], batched=throughput[BATCH]),
    )


def _timed(run: Run, feeds: Sequence[Arrays]) -> list[float]:
    seconds = []
    for feed in feeds:
        started = time.perf_counter()
        run(feed)
        seconds.append(time.perf_counter() - started)
    return seconds
