"""The choice of serving settings: the user's own, else what tuning found, else what export measured."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from serving.bundle import Bundle, Variant
from serving.configuration import Configuration, has_fused
from serving.errors import ArtifactError
from serving.machine import cores, resolve_device
from serving.manifests import VariantFigures
from serving.options import CPU_PRECISIONS, MAX_BATCH_SIZE, Batching, ComputeDevice, Layout, ServedPrecision
from serving.tuning import Tuning

INT8_SCALES = "dynamic int8 scales span the whole batch, so an answer would depend on the other requests in it"

FUSED_HINT = "give --batching off and --device cpu, or another --layout"
FUSED_GAIN = (
    "a small model on two cores had 0.55 to 0.8 of the p99 latency, 1.15 times the requests/s with up to 8 clients, and as many "
    "with more (tritonize tune measures it here)"
)


@dataclass(frozen=True, kw_only=True)
class Plan(Configuration):
    """The settings to serve a model with, and the reasons for them.

    Attributes:
        reasons: By option name, the reason of each automatic choice and notes on some of the user's. The entry
            ``configuration`` says whether the result of tuning was used.
    """

    reasons: dict[str, str]

    @property
    def configuration(self) -> Configuration:
        """The settings without the reasons."""
        return Configuration(**{choice.name: getattr(self, choice.name) for choice in fields(Configuration)})


def make_plan(
    bundle: Bundle,
    *,
    precision: Literal["auto", ServedPrecision],
    device: Literal["auto", ComputeDevice],
    batching: Literal["auto", Batching],
    instances: int | None,
    threads: int | None,
    max_batch_size: int | None,
    queue_delay_us: int | None = None,
    layout: Literal["auto", Layout] = "auto",
    preprocess_instances: int | None = None,
    postprocess_instances: int | None = None,
    tuning: Tuning | None = None,
) -> Plan:
    """Choose every setting that is ``auto`` or None.

    Args:
        bundle: The bundle to serve.
        precision: ``fp32``, ``fp16``, ``int8``, ``int8_rowwise`` or ``auto``.
        device: ``cpu``, ``gpu`` or ``auto``.
        batching: ``ragged``, ``off`` or ``auto``.
        instances: Number of model instances.
        threads: Threads of each instance on a CPU.
        max_batch_size: Maximum number of rows in a request and in an execution.
        queue_delay_us: How long a request may wait for others, in µs.
        layout: ``ensemble``, ``fused`` or ``auto``.
        preprocess_instances: Number of instances of the first step.
        postprocess_instances: Number of instances of the last step.
        tuning: The tuning found beside the bundle. It is ignored, with a reason, if it does not apply.

    Raises:
        ArtifactError: The bundle does not hold this precision, or the fused layout is asked for where it cannot be used.
    """
    reasons: dict[str, str] = {}
    chosen_device = resolve_device(device)
    tuning = applicable_tuning(tuning, bundle, precision, chosen_device, reasons)
    tuned = tuning.winner if tuning is not None else None
    if tuned is not None:
        precision, batching = tuned.precision, tuned.batching if batching == "auto" else batching
        instances, threads = _tuned_instances(tuned, instances, threads)
    variant = _choose_variant(bundle, chosen_device, reasons) if precision == "auto" else bundle.variant(precision)
    chosen_batching = _choose_batching(variant, chosen_device, batching, reasons)
    chosen_instances, chosen_threads = _choose_instances(chosen_device, chosen_batching, instances, threads, reasons)
    chosen_layout = _choose_layout(chosen_device, chosen_batching, layout, tuned, reasons)
    before, after = _choose_step_instances(chosen_device, chosen_layout, preprocess_instances, postprocess_instances, tuned)
    plan = Plan(
        precision=variant.precision,
        device=chosen_device,
        batching=chosen_batching,
        instances=chosen_instances,
        threads=chosen_threads,
        max_batch_size=max_batch_size or (MAX_BATCH_SIZE if tuned is None else tuned.max_batch_size),
        queue_delay_us=_choose_delay(chosen_batching, queue_delay_us, tuned, reasons),
        layout=chosen_layout,
        preprocess_instances=before,
        postprocess_instances=after,
        reasons=reasons,
    )
    add_notes(plan, tuning)
    return plan


def applicable_tuning(tuning: Tuning | None, bundle: Bundle, precision: str, device: str, reasons: dict[str, str]) -> Tuning | None:
    """Return the tuning if it may be used; otherwise None, and why is added to the reasons."""
    if tuning is None:
        return None
    objection = tuning.objection(bundle.folder, precision=precision, device=device)
    if objection is None:
        return tuning
    reasons["configuration"] = f"not as tuned: {objection}"
    return None


def _tuned_instances(tuned: Configuration, instances: int | None, threads: int | None) -> tuple[int | None, int | None]:
    """Take the instances and threads that were tuned, together or not at all, because tuning measured them together."""
    if tuned.device == "gpu":  # threads have no effect
        return instances or tuned.instances, threads
    return (tuned.instances, tuned.threads) if instances is None and threads is None else (instances, threads)


def _choose_delay(batching: str, asked: int | None, tuned: Configuration | None, reasons: dict[str, str]) -> int:
    if batching == "ragged":
        return asked if asked is not None else tuned.queue_delay_us if tuned is not None else 0
    if asked:
        reasons["queue_delay_us"] = f"{asked} has no effect with batching off: no request waits for others"
    return 0


def _choose_layout(
    device: str, batching: str, asked: Literal["auto", Layout], tuned: Configuration | None, reasons: dict[str, str]
) -> Layout:
    """Choose the layout.

    Raises:
        ArtifactError: The fused one is asked for where it is not possible.
    """
    fits = has_fused(device, batching)
    if asked == "fused" and not fits:
        where = "on a GPU" if device == "gpu" else "with batching"
        raise ArtifactError(f"the fused layout cannot be used {where}: it answers one request at a time", hint=FUSED_HINT)
    if asked != "auto":
        return asked
    if tuned is not None:
        return tuned.layout if fits else "ensemble"
    if fits:
        reasons["layout"] = f"ensemble: with --layout fused, {FUSED_GAIN}"
    return "ensemble"


def most_preprocess_instances(device: str, available: int) -> int:
    """Return how many processes tokenize by default on a machine with so many cores.

    One tokenizes about 5,000 requests of one row per second. A GPU can take more. On a CPU the cores are the model's.
    """
    return max(1, min(6, available // 3)) if device == "gpu" else 1


def _choose_step_instances(
    device: str, layout: str, before: int | None, after: int | None, tuned: Configuration | None
) -> tuple[int, int]:
    """Choose the instances of the first and of the last step. The answers take half of the work that the texts take.

    Those that were tuned are taken together or not at all.
    """
    if layout == "fused":
        return 1, 1
    if tuned is not None and before is None and after is None:
        return tuned.preprocess_instances, tuned.postprocess_instances
    before = before or most_preprocess_instances(device, cores())
    return before, after or max(1, before // 2)


def add_notes(plan: Plan, tuning: Tuning | None) -> None:
    """Note where the plan differs from the tuning that applies, and threads that the CPU does not have."""
    own = [] if tuning is None else tuning.differences(plan)
    if tuning is not None:
        plan.reasons["configuration"] = f"tuned: {tuning}" + (f"; except {', '.join(own)}, as asked" if own else "")
    as_tuned = tuning is not None and not {"instances", "threads"} & set(own)
    if not as_tuned and plan.device == "cpu" and plan.instances * plan.threads > cores():
        plan.reasons["threads"] = f"{plan.instances} × {plan.threads} exceeds the {cores()} cores of this machine"


def _choose_variant(bundle: Bundle, device: str, reasons: dict[str, str]) -> Variant:
    if device == "gpu":
        if "fp16" in bundle.variants:
            reasons["precision"] = "fp16: the fastest on a GPU, and it passed its gates"
            return bundle.variants["fp16"]
        reasons["precision"] = "fp32: the bundle holds no fp16 variant that passed its gates"
        return bundle.variant("fp32")
    elsewhere = [name for name, variant in bundle.variants.items() if not _timed_on_cpu(variant)]
    if elsewhere:
        chosen = bundle.variant(next((name for name in CPU_PRECISIONS if name in bundle.variants), "fp32"))
        reasons["precision"] = (
            f"{chosen.precision}: speeds were not compared, because {' and '.join(elsewhere)} "
            f"{'was' if len(elsewhere) == 1 else 'were'} not timed on a CPU (do it with: tritonize export --device cpu)"
        )
        return chosen
    latency = {name: variant.figures.latency_ms for name, variant in bundle.variants.items()}
    listed = ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in latency.items())
    fastest = min(latency, key=lambda name: latency[name])
    reasons["precision"] = f"{fastest}: the fastest that passed its gates ({listed})"
    return bundle.variants[fastest]


def _timed_on_cpu(variant: Variant) -> bool:
    """Return whether the variant's speeds were measured on a CPU. An export on a GPU measures most of them there."""
    return variant.figures.speed_device == "cpu"


def _choose_batching(variant: Variant, device: str, asked: Literal["auto", Batching], reasons: dict[str, str]) -> Batching:
    if asked != "auto":
        if asked == "ragged" and variant.precision == "int8":
            reasons["batching"] = f"ragged, as asked: {INT8_SCALES}{_batch_change(variant)}"
        return asked
    if variant.precision == "int8":
        reasons["batching"] = f"off: {INT8_SCALES}"
        return "off"
    if device == "gpu":
        reasons["batching"] = "ragged: a GPU needs full batches"
        return "ragged"
    if not _timed_on_cpu(variant):
        reasons["batching"] = f"off: {variant.precision} was not timed on a CPU, where batches of mixed lengths mostly add padding"
        return "off"
    alone, together = variant.figures.throughput.one_by_one, variant.figures.throughput.batched
    chosen: Batching = "ragged" if together > alone else "off"
    reasons["batching"] = f"{chosen}: export measured {alone:.0f} rows/s one by one and {together:.0f} rows/s in batches of 16"
    if chosen == "ragged" and variant.precision == "int8_rowwise":
        reasons["batching"] += _batch_change(variant)
    return chosen


def _batch_change(variant: Variant) -> str:
    """Tell how much the other rows of a batch changed the outputs for a row during the export, if that was measured."""
    figures = variant.figures
    if not isinstance(figures, VariantFigures) or figures.max_batch_difference is None:
        return ""
    return f"; the other rows of a batch changed a logit by up to {figures.max_batch_difference:.2g} in the export"


def _choose_instances(
    device: str, batching: str, instances: int | None, threads: int | None, reasons: dict[str, str]
) -> tuple[int, int]:
    """Choose the number of instances and their threads.

    On a CPU the fastest is one single-threaded instance per core without batching, and one instance with all threads with it.
    On a GPU one instance is enough.
    """
    if device == "gpu":
        if threads is not None:
            reasons["threads"] = f"{threads} has no effect on a GPU: it sets threads on a CPU"
        return instances or 1, 1
    if instances is None and threads is None:
        instances = 1 if batching == "ragged" else cores()
        reasons["instances"] = (
            f"{instances}: {'one instance batches all waiting requests' if batching == 'ragged' else 'one instance per core'}"
        )
    if instances is None:
        instances = max(1, cores() // (threads or 1))
    if threads is None:
        threads = max(1, cores() // instances)
    return instances, threads
