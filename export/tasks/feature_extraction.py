"""Feature extraction: embeddings of texts, whose cosines say how similar the texts are.

How tokens are pooled, whether the result is normalized, where rows are truncated and what is put in front of them is read from
the files that sentence-transformers writes beside a checkpoint. A checkpoint without them gets that library's defaults: the mean
of the tokens, not normalized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.tasks import _sentence_transformers as library
from export.tasks._encoder import ExportedEncoderTask
from export.tasks._pooling import CLS, FAR, LAST, MAX, MEAN, POOLINGS, cosines, halves, pooled
from export.tasks.base import Label, Prediction, Reference
from export.tasks.trained import OwnLossTask
from serving.runtime.tasks.feature_extraction import POOLED, TINY, FeatureExtraction, unit
from serving.runtime.types import Arrays, Features, Flags, JsonValue, Setting, TextColumns

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SCALE = 20.0
"""Factor of cosines in the loss, as in CoSENT."""
SAME = 1e-4
"""Embeddings agree fully where their distance is less than this share of the usual distance of two texts."""


@dataclass(frozen=True, kw_only=True)
class FeatureExtractionTask(ExportedEncoderTask[FeatureExtraction], OwnLossTask):
    """Trains and evaluates embeddings.

    Attributes:
        hidden: Length of a token's vector.
        pooling: One of :data:`~export.tasks._pooling.POOLINGS`: the mean of the row's tokens, the first token, the maximum of each
            number, or the last token.
        unit_first: Scale embeddings to norm 1 before they are truncated, so that their norm is below 1 then. That is what
            sentence-transformers does if normalizing is a module of the checkpoint.
    """

    hidden: int = 0
    pooling: str = MEAN
    unit_first: bool = False

    name: ClassVar[str] = FeatureExtraction.name
    auto_model: ClassVar[str] = "AutoModel"
    served_class: ClassVar[type[FeatureExtraction]] = FeatureExtraction
    has_pipeline: ClassVar[bool] = False
    library_name: ClassVar[str] = "the rules of sentence-transformers"
    heads: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    has_output_head: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, Setting]] = {
        "pooling": Setting(str, choices=POOLINGS, help="How the vectors of a row's tokens become one."),
        "lower_case": Setting(bool, help="Lower-case the texts first."),
        "strip": Setting(bool, help="Remove white space around the texts first, as sentence-transformers before version 5.4 does."),
        "truncate_dim": Setting(int, minimum=1, help="Numbers of an embedding that the graph gives."),
    }
    checkpoint_files: ClassVar[tuple[str, ...]] = library.FILES
    recognized_by: ClassVar[str] = library.MODULES
    columns: ClassVar[Mapping[str, str | None]] = {**FeatureExtraction.columns, "label": "score"}

    def __post_init__(self) -> None:
        """Check the settings against each other.

        Raises:
            ValueError: More numbers of an embedding are wanted than there are.
        """
        if self.hidden and self.served.dims > self.hidden:
            raise ValueError(f"truncate_dim is {self.served.dims}, but its embeddings have {self.hidden} numbers")

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool = False) -> Self:  # noqa: ARG003 - texts are embedded one by one
        """Read the length of a token's vector."""
        hidden = library.hidden_size(config)
        return cls(served=FeatureExtraction(dims=hidden), hidden=hidden)

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003
        """Check that the scores differ."""
        if len(set(cast("Sequence[float]", labels))) < 2:
            raise ValueError(f"every pair has the score {labels[0]!r}: there is nothing to learn")
        return cls(served=FeatureExtraction(strip=True))  # as its files will say

    @classmethod
    def checkpoint_settings(
        cls, config: Mapping[str, object], files: Mapping[str, object], chosen: Mapping[str, JsonValue]
    ) -> dict[str, JsonValue]:
        """Read the settings that sentence-transformers wrote."""
        found = library.read_settings(config, files, pooling=cast("str | None", chosen.get("pooling")))
        if "truncate_dim" in found:
            found["truncate_dim"] = cls.settings["truncate_dim"].check("truncate_dim", found["truncate_dim"])
        found |= chosen
        found["dims"] = found.pop("truncate_dim", found["hidden"])  # the graph truncates; a request may ask for less
        if found.get("normalize") and found["dims"] != found["hidden"] and "normalize" not in chosen:
            found |= {"normalize": False, "unit_first": True}
        return found

    @classmethod
    def checkpoint_length(cls, files: Mapping[str, object]) -> int | None:
        """Read ``max_seq_length``."""
        return library.max_length(files)

    def files_written(self, max_length: int) -> dict[str, JsonValue]:
        """Write the settings as sentence-transformers reads them."""
        return library.files_written(
            hidden=self.hidden,
            pooling=self.pooling,
            normalize=self.served.normalize or self.unit_first,
            truncate_dim=self.served.dims if self.served.dims != self.hidden else None,
            prompt=self.served.prompt,
            lower_case=self.served.lower_case,
            max_length=max_length,
        )

    # -- rows -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read the similarity of two texts, on any scale: only the order of pairs counts."""
        try:
            score = float(label) if isinstance(label, str | int | float) and not isinstance(label, bool) else float("nan")
        except ValueError:
            score = float("nan")
        if not isfinite(score):
            raise ValueError(f"the score is {label!r}, not a number")
        return texts, score

    def reference(self, label: Label) -> Reference:
        """Return the similarity."""
        return float(cast(float, label))

    def is_reference(self, value: object) -> bool:
        """Accept a finite float."""
        return isinstance(value, float) and isfinite(value)

    @property
    def text_columns(self) -> int:
        """Return 2, the texts of a pair; a request has one text."""
        return 2

    def requests(self, columns: TextColumns) -> TextColumns:
        """Return the first texts of all pairs, then the second ones."""
        return [[text for column in columns for text in column]]

    # -- the exported graph ---------------------------------------------------------------------------------------------------

    def add_output_head(self, model: onnx.ModelProto) -> str | None:
        """Pool the vectors of a row's tokens."""
        from export.pooling_head import add_pooling_head

        (head,), (output,) = self.heads, self.model_outputs
        add_pooling_head(model, head, output, pooling=self.pooling, dims=self.served.dims, unit=self.unit_first)
        return None

    def apply_output_head(self, heads: Arrays, feed: Arrays) -> Arrays:
        """Pool the vectors of a row's tokens."""
        mask = feed["attention_mask"].astype(heads["last_hidden_state"].dtype)
        whole = pooled(heads["last_hidden_state"], mask, self.pooling)
        return {POOLED: (unit(whole) if self.unit_first else whole)[:, : self.served.dims]}

    # -- training and evaluation ----------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """Return correlation."""
        return "correlation"

    @property
    def default_metric(self) -> str:
        """Return Spearman's correlation of cosines and scores."""
        return "spearman"

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the correlations."""
        return ("spearman", "pearson")

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:  # noqa: ARG002
        """Return one score per pair."""
        return {"labels": list(references)}

    def head_outputs(self, heads: Mapping[str, torch.Tensor], feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pool the vectors of a row's tokens."""
        hidden = heads["last_hidden_state"]
        return {POOLED: pooled(hidden, feed["attention_mask"].to(hidden.dtype), self.pooling)[:, : self.served.dims]}

    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the CoSENT loss (Su 2022): of any two pairs in the batch, the more similar one should have the larger cosine.

        The loss depends on the order alone, which is what Spearman's correlation measures, so scores may be on any scale.
        """
        first, second = halves(outputs[POOLED])
        similar = SCALE * cosines(first, second)
        labels = targets["labels"]
        wrong = (similar[None, :] - similar[:, None]).masked_fill(labels[:, None] <= labels[None, :], -FAR)
        worst = wrong.flatten().logsumexp(0)
        return cast("torch.Tensor", worst.clamp(min=0) + (-worst.abs()).exp().log1p())  # log(1 + Σ exp(wrong))

    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Return the cosine of each pair."""
        return cast("list[Prediction]", cosines(*halves(answers["EMBEDDING"])).tolist())

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare embeddings by degrees: 1 minus their distance (1 - cosine), as a share of the usual distance of two texts.

        The result is the mean of a pair's two texts. A fixed minimum cosine would ask much of one model and nothing of another
        whose embeddings lie close together. MiniLM on STS-B: int8 0.9935 (cosines 0.990 to 0.996, Spearman unchanged), fp16 1.
        """
        ours, theirs = (unit(found["EMBEDDING"].astype(np.float64)) for found in (answers, original))
        usual = 1 - (theirs.mean(axis=0) ** 2).sum()  # 1 - the mean cosine of any two
        off = (1 - (ours * theirs).sum(axis=-1)) / max(float(usual), TINY)
        each = np.where(off <= SAME, 1.0, np.clip(1 - off, 0, 1))
        return cast("npt.NDArray[np.float64]", each.reshape(2, -1).mean(axis=0))

    def ties(self, original: Arrays) -> Flags:
        """Return no ties, because embeddings involve no decision."""
        return np.zeros(len(original["EMBEDDING"]) // 2, dtype=np.bool_)

    def library(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        options: Mapping[str, JsonValue],  # noqa: ARG002 - settings of the checkpoint have them all
    ) -> Callable[[Sequence[str]], object]:
        """Embed a text as ``SentenceTransformer.encode`` does, from its code of versions 5.3 and 6.2."""
        import torch

        poolings: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            MEAN: lambda tokens: tokens.mean(dim=0),
            CLS: lambda tokens: tokens[0],
            MAX: lambda tokens: tokens.max(dim=0).values,
            LAST: lambda tokens: tokens[-1],
        }

        def encode(row: Sequence[str]) -> object:
            text = self.served.prompt + row[0]
            text = text.strip() if self.served.strip else text
            text = text.lower() if self.served.lower_case else text
            fed = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                vector = poolings[self.pooling](model(**fed).last_hidden_state[0])
            if self.unit_first:
                vector = torch.nn.functional.normalize(vector, dim=0)
            vector = vector[: self.served.dims]
            if self.served.normalize:
                vector = torch.nn.functional.normalize(vector, dim=0)
            return vector.tolist()

        return encode


TASK = FeatureExtractionTask
