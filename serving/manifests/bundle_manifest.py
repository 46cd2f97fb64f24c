"""What export records about a bundle: its variants, their figures and their gates."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, JsonValue, Tag

from serving.manifests.manifest import Manifest, MetricRecord, Record
from serving.options import ComputeDevice, Precision


class Throughput(Record):
    """Rows per second of the model alone, on one thread.

    Attributes:
        one_by_one: One row at a time; ``"1"`` in JSON.
        batched: Batches of 16 rows of mixed length; ``"16"`` in JSON.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    one_by_one: float = Field(validation_alias="1", serialization_alias="1")
    batched: float = Field(validation_alias="16", serialization_alias="16")


class SpeedFigures(MetricRecord):
    """Speed of a model alone, without tokenization.

    Attributes:
        latency_ms: Median latency of one row, ms.
        throughput: Rows per second.
        speed_device: The device that both were measured on.
    """

    latency_ms: float
    throughput: Throughput
    speed_device: ComputeDevice


class OriginalCheckpoint(Record):
    """The checkpoint that a bundle was exported from.

    Attributes:
        name: Its location as given, without the path of a folder.
        sha256: One digest over its weights.
    """

    name: str
    sha256: str


class OriginalFigures(SpeedFigures):
    """Figures of the PyTorch original.

    Attributes:
        rows: Number of rows that all variants were verified on.
        bytes: Size of the weights, bytes.
        checkpoint: The checkpoint itself.
    """

    rows: int
    bytes: int
    checkpoint: OriginalCheckpoint


class VariantFigures(SpeedFigures):
    """Figures of one variant.

    Attributes:
        metric_drop: Points (hundredths) of the main metric that the variant loses against the original.
        label_agreement: Share of rows whose answer equals the original's.
        row_agreement: Share of rows whose whole answer equals the original's; None if that is the label agreement.
        ties: Number of rows, or of labels within rows, that count as agreeing because the original's best two labels are tied.
        p99_score_change: 99th percentile of the changes of the scores of the original's labels; None without probabilities.
        max_score_change: Largest of these changes.
        max_logit_difference: Largest difference from the original's outputs; None if an output is NaN or infinite.
        mean_logit_difference: Mean difference; None if an output is NaN or infinite.
        max_batch_difference: Largest difference of two outputs for a row, alone and in a batch; None if it was not measured, which
            it is for int8 only, or if an output is NaN or infinite.
        fusion: The tool that fused the graph.
        fp32_nodes: Names of the nodes of an fp16 graph that stayed in fp32.
        bytes: Size of the graph with its weights, bytes.
        operators: Number of fused operators by type.
    """

    metric_drop: float
    label_agreement: float
    row_agreement: float | None
    ties: int
    p99_score_change: float | None
    max_score_change: float | None
    max_logit_difference: float | None
    mean_logit_difference: float | None
    max_batch_difference: float | None = None
    fusion: str
    fp32_nodes: tuple[str, ...]
    bytes: int
    operators: dict[str, int]


class GenerationVariantFigures(SpeedFigures):
    """Figures of one variant of a model that generates its answers token by token.

    The latency is that of one token of one sequence in ms, the throughput is in tokens per second: of one sequence, and of 16
    together.

    Attributes:
        metric_drop: Points (hundredths) of the main metric that the variant loses against the original; of the perplexity: per cent
            that it gains. None if an output is NaN or infinite.
        next_token_agreement: Share of the tokens of held-out texts, read from their true beginnings, whose most likely successor is
            the original's.
        equal_answers: Share of the answers, generated without sampling, that have the original's tokens.
        max_logit_difference: Largest difference from the original's logits; None if one is NaN or infinite.
        cache_bytes: Memory that one token of one sequence takes in the cache, bytes.
        bytes: Size of the graphs with their weights, bytes.
        operators: Number of operators with a cache by type.
    """

    metric_drop: float | None
    next_token_agreement: float
    equal_answers: float
    max_logit_difference: float | None
    cache_bytes: int
    bytes: int
    operators: dict[str, int]


FIGURE_KINDS = ENCODER, GENERATION = "encoder figures", "generation figures"
"""Tags of the kinds of :data:`EitherFigures`, which pydantic names among the fields."""


def _kind(figures: object) -> str:
    """Return which kind of figures this is: those of a manifest on disk, or a record."""
    if isinstance(figures, dict):
        return GENERATION if "next_token_agreement" in figures else ENCODER
    return GENERATION if isinstance(figures, GenerationVariantFigures) else ENCODER


EitherFigures = Annotated[
    Annotated[VariantFigures, Tag(ENCODER)] | Annotated[GenerationVariantFigures, Tag(GENERATION)], Discriminator(_kind)
]
"""Figures of a variant of either kind of model."""


class VariantGate(Record):
    """A figure of a variant and its limit.

    Attributes:
        name: Name of the figure.
        limit: The limit.
        value: The figure; None if it is NaN or infinite.
        interval: 95 % interval of the figure; None if the figure is exact.
        passed: Whether the gate held.
        message: One line with the figure, its interval and the limit.
    """

    name: str
    limit: float
    value: float | None
    interval: tuple[float, float] | None
    passed: bool
    message: str


class VariantRecord(Record):
    """One precision of a bundle.

    Attributes:
        file: Path of the graph relative to the bundle. The file is absent if the verdict is ``failed``.
        verdict: Whether all gates held.
        gates: The gates.
        figures: What was measured.
    """

    file: str
    verdict: Literal["passed", "failed"]
    gates: tuple[VariantGate, ...]
    figures: EitherFigures

    @property
    def failures(self) -> str:
        """The messages of the gates that did not hold."""
        return "; ".join(gate.message for gate in self.gates if not gate.passed)


class ReferenceCheck(Record):
    """How the graph's answers, made as they are served, compare with those of the library that the checkpoint is made for.

    Attributes:
        library: The library.
        texts: Number of texts that both were asked about.
        max_difference: Largest difference of two numbers in their answers.
    """

    library: str
    texts: int
    max_difference: float


class BundleManifest(Manifest):
    """The manifest that ``tritonize export`` writes.

    Attributes:
        name: Name of the model.
        task: The task.
        labels: Names of the labels: of the model's outputs, of the candidates it was verified with, or of positions; may be empty.
        settings: Settings of the task that serving reads.
        evaluation_settings: Settings of the task that only evaluation reads.
        verified_with: SHA-256 of the served code of the task that the variants were verified with, by path.
        main_metric: Name of the metric that the gates compare.
        device: The device that fp32 and fp16 were verified on.
        warnings: Sentences that the user must read.
        original: Figures of the PyTorch original.
        reference: Comparison with the library's own answers.
        precisions: The variants that were made, by precision.
        max_length: Maximum tokens of a row. Longer rows were not verified.
        max_positions: Maximum tokens of a row that the model has positions for; None if it has no limit.
        model_inputs: Names of the model's inputs that the tokenizer gives.
        padding: Padding value by model input.
        split_special_tokens: Whether the names of special tokens in a text are tokenized like other words.
        output_head: What was appended to the graph, if anything.
        opset: ONNX operator set of the graphs.
    """

    artifact_kind: ClassVar[str] = "bundle"
    remedy: ClassVar[str] = "tritonize export --name NAME"

    kind: Literal["bundle"] = "bundle"
    name: str
    task: str
    labels: tuple[str, ...]
    settings: dict[str, JsonValue]
    evaluation_settings: dict[str, JsonValue]
    verified_with: dict[str, str]
    main_metric: str
    device: ComputeDevice
    warnings: tuple[str, ...]
    original: OriginalFigures
    reference: ReferenceCheck
    precisions: dict[Precision, VariantRecord]
    max_length: int
    max_positions: int | None
    model_inputs: tuple[str, ...]
    padding: dict[str, int]
    split_special_tokens: bool
    output_head: str | None
    opset: int
