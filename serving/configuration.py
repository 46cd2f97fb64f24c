"""The settings that a model is served with."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import NonNegativeInt, PositiveInt

from serving.options import Batching, ComputeDevice, Layout, ServedPrecision
from serving.reporting import plural


def has_fused(device: str, batching: str) -> bool:
    """Return whether the fused layout is possible. It answers one request at a time, so it is for CPUs without batching."""
    return device == "cpu" and batching == "off"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """All settings of a served model, with no choice left open.

    Attributes:
        precision: The served variant: ``fp32``, ``fp16``, ``int8`` or ``int8_rowwise``; in vLLM also ``bf16``.
        device: ``cpu`` or ``gpu``.
        batching: ``ragged`` (requests of different lengths share an execution) or ``off`` (one request per execution).
        instances: Number of model instances that run in parallel.
        threads: Threads of each instance on a CPU. Always 1 on a GPU, where it has no effect.
        max_batch_size: Maximum number of rows in a request and in an execution.
        queue_delay_us: How long a request may wait for others to share its execution, in µs. Always 0 without batching.
        preprocess_instances: Number of processes that tokenize. Always 1 in the fused layout, where it has no effect.
        postprocess_instances: Number of processes that make answers. Always 1 in the fused layout, where it has no effect.
        layout: ``ensemble`` (each step has processes of its own), ``fused`` (all steps in one process; only without batching),
            ``generation`` (one process that generates all answers together) or ``vllm`` (as ``generation``, in vLLM).
        capacity: Tokens of a prompt and its answer that a sequence has room for; None: the model does not generate.
    """

    precision: ServedPrecision
    device: ComputeDevice
    batching: Batching
    instances: PositiveInt
    threads: PositiveInt
    max_batch_size: PositiveInt
    queue_delay_us: NonNegativeInt
    layout: Layout = "ensemble"
    preprocess_instances: PositiveInt = 1
    postprocess_instances: PositiveInt = 1
    capacity: PositiveInt | None = None

    def __str__(self) -> str:
        """Describe the settings in a few words for people."""
        copies = f"{self.instances} instance{'s' if self.instances > 1 else ''}"
        if self.device == "cpu":
            copies = f"{self.instances} × {self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.preprocess_instances > 1:
            copies += f", {self.preprocess_instances} + {self.postprocess_instances} instances of the other steps"
        if self.capacity is not None:
            where = "vLLM on a GPU" if self.layout == "vllm" else f"{self.threads} {plural(self.threads, 'thread')}"
            return f"{self.precision}, {where}, {self.max_batch_size} sequences of {self.capacity} tokens"
        if self.batching == "off":
            return f"{self.precision}, {copies}, no batching{', fused' if self.layout == 'fused' else ''}"
        delay = f", {self.queue_delay_us} µs delay" if self.queue_delay_us else ""
        return f"{self.precision}, {copies}, batches to {self.max_batch_size}{delay}"
