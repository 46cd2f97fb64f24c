"""Chooses how a model that generates is served, with the reason for each automatic choice."""

from __future__ import annotations

from serving.bundle import Bundle, Variant
from serving.errors import ArtifactError
from serving.generation_device import unused_gpu
from serving.machine import cores, memory_bytes
from serving.manifests import GenerationVariantFigures
from serving.options import PackageOptions
from serving.plan import Plan, add_notes, applicable_tuning
from serving.runtime.tasks._text2text import Text2TextTask
from serving.tuning import Tuning

SLOTS = 16
"""Default number of sequences that are generated at the same time."""
MEMORY_SHARE = 4
"""The cache takes one of so many parts of this machine's memory by default, at most."""
LEAST_CAPACITY = 16
"""Fewer tokens for a prompt and its answer are of no use."""
IDLE = ("batching", "layout", "instances", "preprocess_instances", "postprocess_instances", "queue_delay_us")
"""Options of packaging that have no effect: one process generates all answers together, each step with all that run."""


def make_generation_plan(bundle: Bundle, options: PackageOptions, tuning: Tuning | None = None) -> Plan:
    """Choose every setting that is ``auto`` or None.

    Args:
        bundle: The bundle to serve.
        options: Options of the stage.
        tuning: The tuning found beside the bundle. It is ignored, with a reason, if it does not apply.

    Raises:
        ArtifactError: The bundle does not hold this precision, a GPU was asked for, or not one sequence has room.
    """
    reasons: dict[str, str] = {}
    if (reason := unused_gpu(options.device, name=options.name or bundle.manifest.name, task=bundle.task.name)) is not None:
        reasons["device"] = reason
    tuning = applicable_tuning(tuning, bundle, options.precision, "cpu", reasons)
    tuned = None if tuning is None else tuning.winner
    precision = options.precision if tuned is None else tuned.precision
    variant = _fastest(bundle, reasons) if precision == "auto" else bundle.variant(precision)
    slots = options.max_batch_size or (SLOTS if tuned is None else tuned.max_batch_size)
    usual = bundle.generation_task.generation_options
    if slots < max(usual.num_beams, usual.num_return_sequences):
        raise ArtifactError(
            f"an answer of {bundle.manifest.name} needs {max(usual.num_beams, usual.num_return_sequences)} sequences, not {slots}",
            hint="give a larger --max-batch-size",
        )
    measured = None if tuned is None else tuned.capacity
    capacity = _capacity(bundle, variant, slots, asked=options.capacity, measured=measured, reasons=reasons)
    plan = Plan(
        precision=variant.precision,
        device="cpu",
        batching="ragged",
        instances=1,
        threads=options.threads or (cores() if tuned is None else tuned.threads),
        max_batch_size=slots,
        queue_delay_us=0,
        layout="generation",
        capacity=capacity,
        reasons=reasons,
    )
    add_notes(plan, tuning)
    return plan


def generation_figures(variant: Variant) -> GenerationVariantFigures:
    """Return the figures of a variant of a model that generates.

    Raises:
        TypeError: The model answers in one execution.
    """
    if not isinstance(variant.figures, GenerationVariantFigures):
        raise TypeError(f"{variant.path}: a model that answers in one execution has no figures of generation")
    return variant.figures


def _fastest(bundle: Bundle, reasons: dict[str, str]) -> Variant:
    """Return the variant that generates most tokens per second with all slots in use."""
    speeds = {name: variant.figures.throughput.batched for name, variant in bundle.variants.items()}
    chosen = max(speeds, key=lambda name: speeds[name])
    listed = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    reasons["precision"] = f"{chosen}: the fastest that passed its gates (tokens/s of 16 sequences: {listed})"
    return bundle.variants[chosen]


def _capacity(
    bundle: Bundle, variant: Variant, slots: int, *, asked: int | None, measured: int | None, reasons: dict[str, str]
) -> int:
    """Choose the tokens that a sequence has room for, and tell the memory that they take.

    Raises:
        ArtifactError: The model has positions for fewer, or the memory has room for almost none.
    """
    positions = bundle.manifest.max_positions
    if asked is not None and positions is not None and asked > positions:
        raise ArtifactError(f"the model has {positions} positions, not {asked}", hint=f"give --capacity {positions} or less")
    token = generation_figures(variant).cache_bytes * slots
    source = bundle.max_length if isinstance(bundle.task, Text2TextTask) else 0  # the decoder keeps what it reads of each too
    room = memory_bytes() // MEMORY_SHARE // token - source
    if asked is None and room < LEAST_CAPACITY:
        raise ArtifactError(
            f"a quarter of this machine's memory holds {room} tokens of {slots} sequences", hint="give a smaller --max-batch-size"
        )
    wanted = measured or (_usual_answer(bundle) if source else bundle.max_length)
    capacity = asked or min(wanted, positions or wanted, room)
    usual = "as tuned" if measured else "as exported"
    why = "as asked" if asked else usual if capacity < room else "a quarter of this machine's memory"
    what = "of an answer" if source else "of prompt and answer"
    size = (capacity + source) * token / 1e6
    reasons["capacity"] = f"{capacity} tokens {what}, {why}: the cache of {slots} sequences takes {size:,.0f} MB"
    return capacity


def _usual_answer(bundle: Bundle) -> int:
    """Return how many tokens an answer has at most if the request does not say it, with the one that the decoder begins with."""
    options = bundle.generation_task.generation_options
    return 1 + (options.max_new_tokens or options.max_length)
