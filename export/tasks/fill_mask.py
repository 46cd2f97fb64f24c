"""Fill-mask: the tokens that belong in the place of a mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.tasks._encoder import ExportedEncoderTask
from export.tasks._masking import Masking
from export.tasks.base import IGNORED, Label, Prediction, Reference
from export.tasks.trained import AugmentedTask
from serving.runtime.tasks._masks import log_sum, top, with_metadata
from serving.runtime.tasks._strings import read_option
from serving.runtime.tasks.fill_mask import FillMask, MaskAnswer, read_predictions, target_id
from serving.runtime.types import Arrays, Features, Flags, JsonValue, Origins, TextColumns

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx
    from tokenizers import Encoding, Tokenizer
    from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerFast

    from serving.runtime.tokenization import TextEncoder

CLOSE = 1e-3
"""The two best tokens count as tied if their logits differ by less."""
BEST = 5
"""Number of best tokens that the figures beside accuracy look at."""
EVALUATED_ROWS = 2000
"""Maximum number of rows for evaluation: the logits of the whole vocabulary are kept for each."""


@dataclass(frozen=True, kw_only=True)
class FillMaskTask(ExportedEncoderTask[FillMask], AugmentedTask):
    """Trains and evaluates fill-mask (masked language modelling).

    Attributes:
        special_ids: Tokens that are never masked in training.
    """

    special_ids: tuple[int, ...] = ()

    name: ClassVar[str] = FillMask.name
    auto_model: ClassVar[str] = "AutoModelForMaskedLM"
    truncating_options: ClassVar[Mapping[str, object]] = {"tokenizer_kwargs": {"truncation": True}}
    served_class: ClassVar[type[FillMask]] = FillMask
    has_output_head: ClassVar[bool] = True
    columns: ClassVar[Mapping[str, str | None]] = {**FillMask.columns, "label": None}
    reads_digits: ClassVar[bool] = False

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool) -> Self:
        """Read the size of the vocabulary."""
        if pair:
            raise ValueError("it fills masks of single texts, not of pairs")
        return cls(served=FillMask(vocabulary=int(cast(int, config.get("vocab_size") or 0))))

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003 - tokens are the labels
        """Accept any rows of single texts."""
        if pair:
            raise ValueError("fill-mask trains on single texts, not on pairs")
        return cls(served=FillMask())

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Take the tokenizer's special tokens, and check that ``tokenizer.json`` decodes as the tokenizer does."""
        if tokenizer.mask_token_id is None:
            raise ValueError("its tokenizer has no mask token")
        served = replace(
            self.served,
            mask_token=tokenizer.mask_token,
            mask_token_id=tokenizer.mask_token_id,
            pad_token_id=-1 if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            clean_up=bool(tokenizer.clean_up_tokenization_spaces),
            vocabulary=self.served.vocabulary or len(tokenizer),
        )
        _require_equal_decoding(served, tokenizer)
        return replace(self, served=served, special_ids=tuple(sorted(set(tokenizer.all_special_ids))))

    # -- rows -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read a label: the masked token or its number. None: masks are made in the plain text."""
        if label is None or label == "":
            return texts, None
        if isinstance(label, str | int) and not isinstance(label, bool):
            return texts, label
        raise ValueError(f"the label holds {type(label).__name__}, not a token or its number")

    def reference(self, label: Label) -> Reference:
        """Return the label: :meth:`prepare_rows` finds the token's number, which needs the tokenizer."""
        return label

    def is_reference(self, value: object) -> bool:
        """Accept the number of a token."""
        return type(value) is int and 0 <= value < (self.served.vocabulary or math.inf)

    def prepare_rows(
        self, texts: TextColumns, references: Sequence[Reference], encoder: TextEncoder, *, training: bool
    ) -> tuple[TextColumns, Sequence[Reference]]:
        """Make rows for evaluation: one mask each, always the same one, and the token that stood there as the reference.

        Texts in which no token can be masked without changing others are left out, and so are those beyond :data:`EVALUATED_ROWS`.
        Rows for training stay as they are: :meth:`augment_batch` draws their masks anew each time.
        """
        rows = list(zip(texts[0], references, strict=True))
        if not training and len(rows) > EVALUATED_ROWS:
            chosen = np.random.default_rng(0).choice(len(rows), EVALUATED_ROWS, replace=False)
            rows = [rows[index] for index in sorted(chosen.tolist())]
        encodings = encoder.encode([text for text, _ in rows], offsets=True)
        made: list[tuple[str, int | None] | None] = [None] * len(rows)
        plain = {}
        for index, ((text, label), encoding) in enumerate(zip(rows, encodings, strict=True)):
            if label is not None:
                made[index] = text, self._token_of(cast("str | int", label), text, encoding, encoder.tokenizer)
            elif training:
                made[index] = (text, None) if self._masking.maskable(encoding) else None
            elif self.served.mask_token_id not in encoding.ids:
                plain[index] = (text, encoding)
        for index, (text, token) in self._masking.one_each(plain, encoder).items():
            made[index] = text, token
        kept = [row for row in made if row is not None]
        return ([text for text, _ in kept],), [token for _, token in kept]

    def _token_of(self, label: str | int, text: str, encoding: Encoding, tokenizer: Tokenizer) -> int:
        """Return the number of the label of a text that has its mask already."""
        masks = encoding.ids.count(self.served.mask_token_id)
        if masks != 1:
            raise ValueError(f"a labelled text needs one {self.served.mask_token}, this has {masks}: {text!r:.80}")
        token = label if isinstance(label, int) else target_id(label, tokenizer)
        if token is None or not self.is_reference(token):
            raise ValueError(f"label {label!r} is not a token of the vocabulary: {text!r:.80}")
        return token

    @cached_property
    def _masking(self) -> Masking:
        return Masking(self.served.mask_token, self.served.mask_token_id, frozenset(self.special_ids))

    # -- the exported graph ---------------------------------------------------------------------------------------------------

    def add_output_head(self, model: onnx.ModelProto) -> str | None:
        """Keep only the logits at masked positions."""
        from export.mask_head import add_mask_head

        return add_mask_head(model, self.heads, self.served.mask_token_id)

    def apply_output_head(self, heads: Arrays, feed: Arrays) -> Arrays:
        """Keep the logits of a row's masks in their order, then of its other positions from the first one.

        There are as many of each row as the row with the most masks has, and at least one.
        """
        others = feed["input_ids"] != self.served.mask_token_id
        kept = max(1, int((~others).sum(axis=1).max()))
        positions = np.argsort(others, axis=1, kind="stable")[:, :kept]
        return {"logits": np.take_along_axis(heads["logits"], positions[:, :, None], axis=1)}

    # -- training and evaluation ----------------------------------------------------------------------------------------------

    @property
    def metric(self) -> str:
        """Return accuracy."""
        return "accuracy"

    @property
    def default_metric(self) -> str:
        """Return accuracy."""
        return "accuracy"

    def training_features(self, texts: TextColumns, encoder: TextEncoder) -> Features:
        """Tokenize plain texts too: their masks come later."""
        encodings = encoder.encode(texts[0])
        return with_metadata(encodings, [encoding.ids for encoding in encodings], [])

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:
        """Put the right token at each mask. A row without a reference has no target yet."""
        pairs = zip(features.encodings, cast("Sequence[int | None]", references), strict=True)
        return {"labels": [self.row_targets(encoding, reference) for encoding, reference in pairs]}

    def row_targets(self, encoding: Encoding, reference: int | None) -> list[int]:
        """Build the targets of one row."""
        if reference is None:
            return [IGNORED] * len(encoding)
        return [reference if token == self.served.mask_token_id else IGNORED for token in encoding.ids]

    def augment_batch(self, batch: Arrays, generator: np.random.Generator) -> Arrays:
        """Draw the masks of rows that have no target."""
        return self._masking.mask_at_random(batch, generator, vocabulary=self.served.vocabulary)

    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Return the best token of each row's mask."""
        return [row[0][0]["token"] for row in read_predictions(answers)]

    def extra_figures(
        self,
        outputs: Arrays,
        original: Arrays,
        origins: Origins,  # noqa: ARG002 - evaluated rows have one mask each
        references: Sequence[Reference],
    ) -> dict[str, float]:
        """Compute perplexity and the figures of the :data:`BEST` tokens.

        ``perplexity``: e to the mean negative log-likelihood of the right token, infinite if it overflows. ``accuracy_at_5``: share
        of rows whose right token is among the best. ``agreement_at_5``: share of the original's best tokens that are among the best
        here.
        """
        losses, hits, shared = [], [], []
        right = cast("Sequence[int]", references)
        for row, theirs, reference in zip(outputs["logits"], original["logits"], right, strict=True):
            best = top(row[:1], BEST)[0]
            losses.append(log_sum(row[:1])[0] - row[0, reference])
            hits.append(reference in best)
            shared.append(np.isin(best, top(theirs[:1], BEST)[0]).mean())
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(np.mean(losses, dtype=np.float64)))
        return {
            "perplexity": perplexity,
            "accuracy_at_5": float(np.mean(hits)),
            "agreement_at_5": float(np.mean(shared)),
        }

    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare the best tokens."""
        pairs = zip(read_predictions(answers), read_predictions(original), strict=True)
        return np.array([_firsts(ours) == _firsts(theirs) for ours, theirs in pairs], dtype=np.float64)

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Return the changes of the best tokens that are the same."""
        rows = zip(read_predictions(answers), read_predictions(original), strict=True)
        firsts = [(mine[0], other[0]) for ours, theirs in rows for mine, other in zip(ours, theirs, strict=True) if mine and other]
        same = [(one, other) for one, other in firsts if one["token"] == other["token"]]
        return np.array([abs(one["score"] - other["score"]) for one, other in same], dtype=np.float64)

    def ties(self, original: Arrays) -> Flags:
        """Find rows whose two best tokens are closer than :data:`CLOSE`."""
        close = math.exp(-CLOSE)
        rows = read_predictions(original)
        return np.array(
            [any(mask[1]["score"] >= mask[0]["score"] * close for mask in row if len(mask) > 1) for row in rows], dtype=np.bool_
        )

    def edge_text(self, text: str, usual: str) -> str:  # noqa: ARG002
        """Put a mask in front of a text that has none, or several, in whose places a word then stands."""
        mask = self.served.mask_token
        return text if text.count(mask) == 1 else f"{mask} {text.replace(mask, 'a')}"

    def library(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, max_length: int, options: Mapping[str, JsonValue]
    ) -> Callable[[Sequence[str]], object]:
        """Give the pipeline the list of targets, which are a setting as one string."""
        listed = {name: cast(JsonValue, read_option(str(value), name)) for name, value in options.items() if name == "targets"}
        return super().library(model, tokenizer, max_length=max_length, options={**options, **listed})

    def ask_pipeline(self, pipeline: Pipeline, rows: Sequence[Sequence[str]], *, max_length: int) -> list[object]:
        """Ask with truncation; the pipeline unwraps a list of one."""
        kwargs = {"truncation": True, "max_length": max_length}
        found: list[object] = pipeline([text for (text,) in rows], batch_size=len(rows), tokenizer_kwargs=kwargs)
        return [found] if len(rows) == 1 else found


def _require_equal_decoding(served: FillMask, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check on a sample of the vocabulary that ``tokenizer.json`` alone decodes as the checkpoint's own tokenizer does.

    Raises:
        ValueError: It does not.
    """
    sample = list(range(0, len(tokenizer), max(1, len(tokenizer) // 500)))
    for start in range(0, len(sample), 10):
        ids = sample[start : start + 10]
        for skip in (True, False):
            ours = served.decode(tokenizer.backend_tokenizer, [ids], skip_special_tokens=skip)[0]
            if ours != tokenizer.decode(ids, skip_special_tokens=skip):
                raise ValueError(f"its tokenizer decodes tokens {ids} with Python code, which cannot be served")


def _firsts(row: list[list[MaskAnswer]]) -> list[int]:
    return [mask[0]["token"] for mask in row]


TASK = FillMaskTask
