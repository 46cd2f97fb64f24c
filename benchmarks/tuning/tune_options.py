"""Options of ``tritonize tune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from serving.option_fields import Option
from serving.options import Device, Precision, RepositoryOptions, Seed, parse_model_name


@dataclass(frozen=True, kw_only=True)
class TuneOptions(RepositoryOptions):
    """What to tune, for which goal, and how thoroughly."""

    name: Annotated[
        str | None,
        Option("Name of the model.", metavar="NAME", parse=parse_model_name, default_text="the argument", shared=True),
    ] = None
    artifacts: Annotated[Path, Option("Folder for checkpoints and bundles.", path="folder", shared=True)] = Path("artifacts")
    bundle: Annotated[
        Path | None, Option("Folder that export wrote.", path="folder", default_text="ARTIFACTS/NAME/bundle", shared=True)
    ] = None
    latency_p99_ms: Annotated[
        float | None,
        Option(
            "Latency budget: milliseconds within which 99 % of the requests must be answered.",
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
    minutes: Annotated[float, Option("Maximum time of all trials together.", above=0)] = 15.0
    fresh: Annotated[bool, Option("Discard all earlier trials and measure again.")] = False
    seed: Seed = 0

    @property
    def bundle_folder(self) -> Path:
        """The folder of the bundle."""
        return self.bundle or self.artifacts / str(self.name) / "bundle"

    @property
    def loads(self) -> tuple[int, ...]:
        """Numbers of clients, ascending."""
        return tuple(sorted(set(self.concurrencies)))


@dataclass(frozen=True, kw_only=True)
class DryRunOptions:
    """Whether to try anything."""

    dry_run: Annotated[bool, Option("Print the configurations that would be tried first, and exit.")] = False
