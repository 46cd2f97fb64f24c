"""How a model is served, every choice made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Args:
    precision: the variant served.
    device: ``cpu`` or ``gpu``.
    batching: ``ragged`` (requests of mixed length share an execution) or ``off`` (every request is executed alone).
    instances: copies of the model that run side by side.
    threads: threads of each copy on a CPU; 1 on a GPU, where they have no effect.
    max_batch_size: most rows in a request, and in an execution.
    queue_delay_us: how long a request may wait for others to share its execution, µs; 0 without batching, where none does.
    """

    precision: str
    device: str
    batching: str
    instances: int
    threads: int
    max_batch_size: int
    queue_delay_us: int

    def __str__(self) -> str:
        copies = f"{self.instances} instance{'s' if self.instances > 1 else ''}"
        if self.device == "cpu":
            copies = f"{self.instances} × {self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.batching == "off":
            return f"{self.precision}, {copies}, no batching"
        delay = f", {self.queue_delay_us} µs delay" if self.queue_delay_us else ""
        return f"{self.precision}, {copies}, batches to {self.max_batch_size}{delay}"
