"""What the two kinds of models that generate, decoders and encoder-decoders, give to and take from the making of their bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.data import LabelledRows
from export.export_options import ExportOptions
from export.generation.decoder_gates import GenerationLimits
from export.generation.decoding_speed import DecodingSpeed
from serving.manifests import ReferenceCheck, Throughput, VariantRecord
from serving.options import Precision
from serving.runtime.tokenization import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from export.tasks._generation import ExportedGenerationTask


@dataclass(frozen=True)
class VariantInputs:
    """What variants are made of, and verified on.

    Attributes:
        model: The model of ``transformers``.
        task: The task, bound to the checkpoint.
        tokenizer: The checkpoint's tokenizer.
        encoder: The tokenizer as it is served.
        rows: The rows.
        options: Options of the stage.
        staging: Folder of the bundle.
    """

    model: Any
    task: ExportedGenerationTask
    tokenizer: PreTrainedTokenizerFast
    encoder: TextEncoder
    rows: LabelledRows
    options: ExportOptions
    staging: Path

    @property
    def limits(self) -> GenerationLimits:
        """The limits of the gates about tokens."""
        increase = self.options.max_perplexity_increase
        return GenerationLimits(
            max_perplexity_increase=None if increase is None else increase / 100,
            min_token_agreement=self.options.min_agreement,
        )


@dataclass(frozen=True, kw_only=True)
class MadeVariants:
    """The variants of a bundle.

    Attributes:
        metric: Name of the main metric.
        original: Its figure of the original.
        rows: Number of rows that the variants were verified on.
        speed: Speed of the original.
        records: The variants by precision.
        reference: How the answers of fp32 compare with those of ``transformers``.
        max_positions: Maximum tokens that the model has positions for; None: no limit.
    """

    metric: str
    original: float
    rows: int
    speed: DecodingSpeed
    records: Mapping[Precision, VariantRecord]
    reference: ReferenceCheck
    max_positions: int | None


def speed_figures(speed: DecodingSpeed) -> dict[str, object]:
    """Return the fields of :class:`serving.manifests.SpeedFigures`."""
    throughput = Throughput(one_by_one=speed.alone, batched=speed.together)
    return {"latency_ms": 1000 / speed.alone, "throughput": throughput, "speed_device": "cpu"}
