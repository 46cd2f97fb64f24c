"""Options of ``tritonize tune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from benchmarks.options import ExportedModelOptions
from serving.option_fields import Option
from serving.options import Device, Precision, Seed


@dataclass(frozen=True, kw_only=True)
class TuneOptions(ExportedModelOptions):
    """What to tune, for which goal, and how thoroughly."""

    latency_p99_ms: Annotated[
        float | None,
        Option(
            "Latency budget: milliseconds within which 99 % of the requests must be answered, wholly.",
            above=0,
            default_text="none; throughput alone counts",
        ),
    ] = None
    precisions: Annotated[
        tuple[Precision, ...],
        Option(
            "Precisions that may be served.",
            flag="--precision",
            commas=True,
            default_text="all of the bundle, on a GPU without int8",
            shared=True,
        ),
    ] = ()
    device: Device = "auto"
    concurrencies: Annotated[
        tuple[int, ...],
        Option(
            "Number of clients that send requests at the same time; each number is one load.",
            flag="--concurrency",
            metavar="N[,N…]",
            minimum=1,
            commas=True,
        ),
    ] = (1, 4, 16)
    rows: Annotated[int, Option("Number of evaluation rows of the bundle to send.", minimum=1)] = 256
    duration: Annotated[
        float, Option("Seconds that each load is measured in each trial, after a warm-up of half of that.", above=0)
    ] = 4.0
    new_tokens: Annotated[int, Option("Tokens of every answer of a model that generates.", minimum=2)] = 64
    minutes: Annotated[
        float, Option("Time for all trials together; the first trial and two rounds of the final are always made.", above=0)
    ] = 15.0
    fresh: Annotated[bool, Option("Discard all earlier trials and measure again.")] = False
    seed: Seed = 0

    @property
    def loads(self) -> tuple[int, ...]:
        """Numbers of clients, ascending."""
        return tuple(sorted(set(self.concurrencies)))


@dataclass(frozen=True, kw_only=True)
class DryRunOptions:
    """Whether to try anything."""

    dry_run: Annotated[bool, Option("Print the configurations that would be tried first, and exit.")] = False
