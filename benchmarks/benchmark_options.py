"""Options of ``tritonize benchmark`` and ``tritonize compare``. Light, so that ``--help`` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated

from benchmarks.options import ExportedModelOptions
from export.columns import Columns
from serving.access_options import AccessOptions
from serving.option_fields import Option
from serving.options import Device, Precision, Seed, ServerAddress, WireProtocol

REPORTS = Path("benchmarks/reports")


def parse_percent(text: str) -> float:
    """Read a percentage such as ``10%``.

    Returns:
        The share, 0.1.

    Raises:
        ValueError: It is not a percentage from 0 % to below 1000 %.
    """
    number, sign = text.strip()[:-1], text.strip()[-1:]
    try:
        share = float(number) / 100
    except ValueError:
        share = -1.0
    if sign != "%" or not 0 <= share < 10:
        raise ValueError(f"{text!r} is not a percentage such as 10%")
    return share


@dataclass(frozen=True, kw_only=True)
class OpenLoop:
    """Requests that arrive at random times, whether answers come or not. One of the two is None.

    Attributes:
        share: Rate as a share of the best closed loop's throughput, 0.8 is 80 %.
    """

    rate: float | None = None
    share: float | None = None

    def __str__(self) -> str:
        """Write it as on the command line."""
        return f"{self.rate:g}" if self.share is None else f"{100 * self.share:.0f}%"


def parse_open_loop(text: str) -> OpenLoop:
    """Read an open loop: a rate such as ``100``, or a share such as ``80%``.

    Raises:
        ValueError: It is neither.
    """
    is_share = text.endswith("%")
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf") or (is_share and number != int(number)):
        raise ValueError(f"{text!r} is neither a rate such as 100 nor a share such as 80%")
    return OpenLoop(share=number / 100) if is_share else OpenLoop(rate=number)


def _parse_gate(text: str) -> str:
    from benchmarks.gates import parse_gate
    from serving.errors import DataError

    try:
        parse_gate(text)
    except DataError as error:
        raise ValueError(error.message_with_hint) from None
    return text


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How much worse than the baseline a report may be."""

    max_regression: Annotated[
        float,
        Option(
            "How much worse than the baseline a speed may be. If measurement noise is larger, the noise is the limit.",
            parse=parse_percent,
            show=lambda share: f"{100 * share:g}%",
        ),
    ] = 0.1
    max_quality_drop: Annotated[
        float,
        Option("Percentage points that a metric or the agreement with the original may be below the baseline's.", minimum=0),
    ] = 0.5
    any_machine: Annotated[bool, Option("Compare speeds even if the machines differ, or if other programs used the processor.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ExportedModelOptions):
    """Options of ``tritonize benchmark``."""

    checkpoint: Annotated[
        str | None,
        Option(
            "The PyTorch original: a folder, or a name on the Hugging Face Hub.",
            default_text="ARTIFACTS/NAME/checkpoint; otherwise the one that was exported",
        ),
    ] = None
    address: ServerAddress = field(default_factory=ServerAddress)
    access: AccessOptions = field(default_factory=AccessOptions)
    in_process: Annotated[bool, Option("Measure without a server: PyTorch and ONNX Runtime only.")] = False
    precisions: Annotated[
        tuple[Precision, ...],
        Option(
            "Variants to run in process.",
            flag="--precision",
            metavar="fp32|fp16|int8|int8_rowwise[,…]",
            commas=True,
            default_text="all of the bundle",
            shared=True,
        ),
    ] = ()
    device: Device = "auto"
    protocols: Annotated[
        tuple[WireProtocol, ...],
        Option(
            "Protocols of the requests. Measurements with a single protocol use the first.",
            flag="--protocol",
            metavar="grpc|http[,…]",
            commas=True,
        ),
    ] = ("grpc", "http")
    concurrencies: Annotated[
        tuple[int, ...],
        Option(
            "Clients of each closed loop: requests kept in flight. Of a model that generates also in process.",
            flag="--concurrency",
            metavar="N[,N…]",
            minimum=1,
            commas=True,
            default_text="1,4,16,64; of a model that generates 1,4,16",
        ),
    ] = ()
    open_loops: Annotated[
        tuple[OpenLoop, ...],
        Option(
            "Open loops: requests per second that arrive at random times, or a share of the best closed loop's throughput.",
            flag="--rate",
            metavar="N|N%[,…]|none",
            parse=parse_open_loop,
            commas=True,
            may_be_none=True,
        ),
    ] = (OpenLoop(share=0.5), OpenLoop(share=0.8))
    lengths: Annotated[
        tuple[int, ...],
        Option(
            "Also measure with rows that all have this number of tokens.",
            flag="--length",
            metavar="N[,N…]|none",
            minimum=1,
            commas=True,
            may_be_none=True,
        ),
    ] = (16, 64, 128, 384)
    batches: Annotated[
        tuple[int, ...], Option("Rows per call in process.", flag="--batch", metavar="N[,N…]", minimum=1, commas=True)
    ] = (1, 8, 32)
    new_tokens: Annotated[int, Option("Tokens of every answer of a model that generates.", minimum=2)] = 64
    exported: Annotated[bool, Option("Also measure the ONNX graph as Optimum exports it, without our fusions.")] = True
    compiled: Annotated[
        bool, Option("Also measure the original compiled with torch.compile.", flag="--compile", former_keys=("compiled",))
    ] = False
    test: Annotated[
        str | None, Option("Labelled rows to measure on.", metavar="FILE|hub:NAME", default_text="those in the bundle")
    ] = None
    columns: Columns = field(default_factory=Columns)
    rows: Annotated[int, Option("Texts that speed is measured on, drawn at random from the labelled rows.", minimum=2)] = 512
    duration: Annotated[float, Option("Seconds of timing per figure, all rounds together.", above=0)] = 5.0
    rounds: Annotated[
        int, Option("Number of rounds that measure every model and load; the report shows their median.", minimum=1)
    ] = 5
    gates: Annotated[
        tuple[str, ...],
        Option(
            "A comparison that must hold, such as 'served.int8.c16.throughput >= 2 * pytorch.fp32.throughput'. Repeatable.",
            flag="--gate",
            metavar="EXPRESSION",
            parse=_parse_gate,
        ),
    ] = ()
    baseline: Annotated[Path | None, Option("Report of an earlier run to compare with.", metavar="FILE")] = None
    tolerances: Tolerances = field(default_factory=Tolerances)
    junit: Annotated[Path | None, Option("Write gates and the comparison as JUnit XML too.", metavar="FILE")] = None
    output: Annotated[Path | None, Option("Folder for the report.", path="folder", default_text="benchmarks/reports/NAME-TIME")] = (
        None
    )
    seed: Seed = 0
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())

    @property
    def report_folder(self) -> Path:
        """Folder for the report."""
        return self.output or REPORTS / f"{self.name}-{self.started:%Y%m%d-%H%M%S}"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of ``tritonize compare``."""

    everything: Annotated[bool, Option("List the figures that stayed the same too.", flag="--all", former_keys=("everything",))] = (
        False
    )
    markdown: Annotated[Path | None, Option("Write the tables as Markdown too.", metavar="FILE", path="file")] = None
    junit: Annotated[Path | None, Option("Write every figure as a test too.", metavar="FILE", path="file")] = None
