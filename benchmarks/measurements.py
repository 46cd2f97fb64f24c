"""What a benchmark measures: models in process and the served ensemble, with their speeds, costs and quality."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, Field, JsonValue, NonNegativeFloat, NonNegativeInt, PositiveInt

from benchmarks.speed import Speed
from benchmarks.token_speed import TokenSpeed

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure of quality and its 95 % interval, bootstrapped over the rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ChangedAnswer:
    """A row whose answer differs from the original's.

    Attributes:
        row: Number of the row among the labelled rows, from 0.
        texts: Texts of the row by input tensor.
        difference: Largest difference between any two of their scores; None if the answers hold no numbers.
    """

    row: NonNegativeInt
    texts: dict[str, str]
    reference: JsonValue
    original: JsonValue
    answer: JsonValue
    difference: float | None


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of the answers to the labelled rows.

    The answers of a model that continues texts are compared with the original's greedy answers, token for token; the texts of an
    encoder-decoder with the original's, character for character, and by the metric with the right ones.

    Attributes:
        metrics: Every figure of the task's metric; empty if the backend does not return enough to compute it.
        agreement: Share of labels that equal the original's; of a model that generates: share of an answer's tokens, or
            characters, before the first one that differs.
        row_agreement: Share of rows whose whole answer equals the original's; None if that is the agreement.
        p99_score_change: 99th percentile of the changes of the scores of the original's labels; None without probabilities.
        max_score_change: Largest of these changes.
        max_score_difference: Largest difference of any score from the original's; None if the answers hold no numbers.
        max_logit_difference: Largest difference of any model output from the original's; None if the outputs were not recorded (the
            server, the pipeline).
        main: The main metric with its interval.
        drop: How much lower the main metric is than the original's on the same rows; None for the original itself.
        calibration_error: Expected calibration error, 0 to 1; None if scores are not probabilities.
        not_finite: Number of rows whose answers hold NaN or infinity. Figures that become NaN by this are None or left out.
        perplexity: Perplexity of a model that generates, and
        perplexity_increase: how much higher it is than the original's, relatively, and
        next_token_agreement: its share of most likely next tokens that are the original's. All three are the bundle's figures, from
            its verification; None for models that it does not describe.
        changed_answers: The rows whose answers differ most, the largest difference first.
    """

    rows: PositiveInt
    metrics: dict[str, float]
    agreement: Share
    max_score_difference: NonNegativeFloat | None
    row_agreement: Share | None = None
    p99_score_change: NonNegativeFloat | None = None
    max_score_change: NonNegativeFloat | None = None
    max_logit_difference: NonNegativeFloat | None = None
    main: Estimate | None = None
    drop: Estimate | None = None
    calibration_error: Share | None = None
    not_finite: NonNegativeInt = 0
    perplexity: NonNegativeFloat | None = None
    perplexity_increase: float | None = None
    next_token_agreement: Share | None = None
    changed_answers: Annotated[list[ChangedAnswer], Field(validation_alias=AliasChoices("changed_answers", "moved"))] = field(
        default_factory=list
    )


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One way of running a model in process.

    Attributes:
        name: ``b32`` is 32 rows per call, ``p2t1`` two processes of one thread each, ``c16`` 16 requests in flight that join and
            leave a running batch; a suffix ``l128`` means rows of 128 tokens.
        threads: Threads of one operator in each process.
        length: Tokens of every row; None for rows as they are.
        load_seconds: Time from an empty process to a loaded model.
        first_answer_seconds: Time of the first answer after that.
        peak_rss_mib: Resident memory of all processes together, MiB.
        gpu_memory_mib: GPU memory, MiB; None without a GPU.
        joules_per_row: Energy of the whole machine per row; None if the machine has no readable counters.
        tokens: How the tokens of a model that generates came; None for other models.
    """

    name: str
    processes: PositiveInt
    threads: PositiveInt
    batch: PositiveInt
    length: PositiveInt | None = None
    speed: Speed
    load_seconds: NonNegativeFloat
    first_answer_seconds: NonNegativeFloat
    peak_rss_mib: NonNegativeFloat
    gpu_memory_mib: NonNegativeFloat | None
    joules_per_row: float | None = None
    tokens: TokenSpeed | None = None


def _require_real_rows(arrangements: dict[str, Arrangement]) -> dict[str, Arrangement]:
    """Refuse arrangements of which none was timed on rows as they are: the model would have no speed of its own."""
    if all(one.length is not None for one in arrangements.values()):
        raise ValueError("no arrangement was timed on rows as they are (length null)")
    return arrangements


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """A model that ran in process.

    Attributes:
        kind: ``pytorch``, ``compiled`` (torch.compile), ``pipeline`` (transformers), ``exported`` (ONNX as Optimum wrote it),
            ``onnx`` (a variant of the bundle) or ``tensorrt``.
        precision: Precision that really ran, as read from the file or the tensors.
        size_mib: Size of all files with weights, MiB.
        fused_operators: Number of ONNX Runtime's own operators in the file by type; None if it is not an ONNX file.
    """

    kind: str
    precision: str
    device: str
    file: str
    sha256: str
    size_mib: NonNegativeFloat
    fused_operators: dict[str, NonNegativeInt] | None
    arrangements: Annotated[dict[str, Arrangement], AfterValidator(_require_real_rows)]
    quality: Quality

    @property
    def name(self) -> str:
        """The name that gates use."""
        return f"{self.kind}.{self.precision}"

    @property
    def on_real_rows(self) -> list[Arrangement]:
        """The arrangements that were timed on rows as they are."""
        return [one for one in self.arrangements.values() if one.length is None]

    @property
    def best(self) -> Arrangement:
        """The arrangement with the highest throughput over all rounds on rows as they are."""
        return max(self.on_real_rows, key=lambda one: one.speed.throughput)

    @property
    def quickest(self) -> Arrangement:
        """The arrangement with the lowest median latency over all rounds on rows as they are."""
        return min(self.on_real_rows, key=lambda one: one.speed.p50_ms)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Triton's statistics of one step of the ensemble.

    Attributes:
        queue_us: Mean time that a request waited, µs.
        compute_us: Mean time that a request spent in the step, including the rest of its batch, µs.
        cost_us: Time the step was busy per row, µs.
    """

    executed_batch: float
    queue_us: float
    compute_us: float
    cost_us: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """Mean time of a request by part, µs. The sum is the mean latency.

    Attributes:
        client: Packing and unpacking in the load generator.
        network: Between the client and Triton's ensemble, both ways, protocol included.
        queue: Waiting for any of the steps.
        ensemble: Rest of the ensemble: scheduling, and copies between steps.
    """

    client: float
    network: float
    queue: float
    preprocess: float
    model: float
    postprocess: float
    ensemble: float

    @property
    def total(self) -> float:
        """The mean latency, µs."""
        total: float = sum(asdict(self).values())
        return total


@dataclass(frozen=True, kw_only=True)
class LoadMode:
    """How the server is loaded over ``grpc`` or ``http``, one row per request.

    Attributes:
        protocol: ``grpc`` or ``http``.
        concurrency: Clients of a closed loop, each of which waits for its answer before it sends the next request; None in an open
            loop.
        rate: Requests per second of an open loop, sent at random times (Poisson); None in a closed loop, and as long as ``share``
            has not been converted into a rate.
        share: Rate as a share of the best closed loop's throughput; None if the rate was given as a number.
        length: Tokens of every row; None for rows as they are.
    """

    protocol: str
    concurrency: PositiveInt | None = None
    rate: NonNegativeFloat | None = None
    share: NonNegativeFloat | None = None
    length: PositiveInt | None = None

    @property
    def name(self) -> str:
        """The name that gates use after the model's name.

        ``c16`` is 16 clients over gRPC, ``http.c16`` over HTTP, ``r100`` 100 requests per second (``r0_5`` is 0.5), ``load80``
        80 % of the best throughput; a suffix ``l128`` means rows of 128 tokens.
        """
        if self.concurrency is not None:
            how = f"c{self.concurrency}"
        else:
            how = f"load{100 * self.share:.0f}" if self.share is not None else f"r{self.rate:g}".replace(".", "_")
        return f"{'' if self.protocol == 'grpc' else f'{self.protocol}.'}{how}{f'l{self.length}' if self.length else ''}"


@dataclass(frozen=True, kw_only=True)
class Load(LoadMode):
    """What was measured under one load on the server.

    Attributes:
        delayed: Share of an open loop's requests that the load generator sent too late, which makes its latencies too low.
        executed_batch: Rows per execution of the model step by Triton's count. With batching off, several requests may be handed
            over together; they still run one by one. None for a model that generates: Triton does not see its steps.
        steps: Statistics by step, without the ensemble's name.
        split: Mean time of a request by part; None for a model that generates.
        joules_per_row: Energy of the whole machine per row, load generator included; None if the machine has no readable counters.
        tokens: How the tokens of a model that generates came; None for other models.
    """

    delayed: Share = 0.0
    speed: Speed
    executed_batch: float | None
    steps: dict[str, Step]
    split: Split | None
    joules_per_row: float | None = None
    tokens: TokenSpeed | None = None


@dataclass(frozen=True, kw_only=True)
class Served:
    """The ensemble, asked over the network.

    Attributes:
        precision: Precision of the repository's ONNX file, which is still the packaged one.
        package: Settings of the package from the repository's manifest.
        load_seconds: Time from the start of the server to its first answers; None if tritonize did not start it on this machine.
        peak_rss_mib: Peak resident memory of the server's processes under load, MiB (see ``MemoryMeter``); None if not visible.
        pss_mib: The same with shared pages counted once.
        gpu_memory_mib: Memory in use on the server's GPUs by all processes, MiB; None without a GPU.
        size_mib: Size of the ONNX file and its external weights, MiB.
    """

    precision: str
    package: dict[str, str | int]
    sha256: str
    server: str
    loads: list[Load]
    quality: Quality
    load_seconds: NonNegativeFloat | None
    peak_rss_mib: NonNegativeFloat | None
    pss_mib: NonNegativeFloat | None
    gpu_memory_mib: NonNegativeFloat | None
    size_mib: NonNegativeFloat

    @property
    def name(self) -> str:
        """The name that gates use."""
        return f"served.{self.precision}"
