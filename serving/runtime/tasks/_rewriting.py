"""Tasks of encoder-decoders: a text → another text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ._labels import IGNORED
from ._served import Text
from ._trained import TrainedTask
from .base import Arrays, Columns, Features, Option, Origins

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Tokenizer

    from ..tokenization import TextEncoder


JUDGED_ROWS = 1000
"""Rows to be judged on, at most: an answer is written for each, token by token."""


@dataclass(frozen=True, kw_only=True)
class RewritingTask(TrainedTask):
    """Args:
    prefix: what the model expects in front of every text, as T5 does.
    max_new_tokens: of an answer; longer targets are cut.
    num_beams: hypotheses that are followed while an answer is written.
    pad_token_id: of the checkpoint's tokenizer.
    target_start, target_end: tokens around a target; those that the tokenizer puts around any text.
    """

    prefix: str = ""
    max_new_tokens: int = 128
    num_beams: int = 1
    pad_token_id: int = -1
    target_start: tuple[int, ...] = ()
    target_end: tuple[int, ...] = ()

    auto_model: ClassVar[str] = "AutoModelForSeq2SeqLM"
    architectures: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration",)
    outputs_read: ClassVar[tuple[str, ...]] = ("sequences",)
    generates: ClassVar[bool] = True
    cut: ClassVar[bool] = True
    token_level: ClassVar[bool] = True
    setup: ClassVar[Mapping[str, Option]] = {
        "prefix": Option(str),
        "max_new_tokens": Option(int, minimum=1),
        "num_beams": Option(int, minimum=1),
    }

    @classmethod
    def checkpoint_settings(cls, config: Mapping[str, Any], files: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The prefix that it was fine-tuned with, as ``transformers.pipeline`` finds it.

        Raises:
            ValueError: it is no encoder-decoder.
        """
        if not config.get("is_encoder_decoder"):
            raise ValueError("it is no encoder-decoder, and writes no other text than the one it reads")
        own = (config.get("task_specific_params") or {}).get(cls.name, {})
        prefix = own.get("prefix") or config.get("prefix") or ""
        return {"prefix": prefix} | super().checkpoint_settings(config, files, chosen)

    def with_tokenizer(self, tokenizer: Any) -> Self:
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = tokenizer(text_target="a")["input_ids"]
        starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
        if not starts:
            raise ValueError("its tokenizer writes targets otherwise than texts")
        start, end = whole[: starts[0]], whole[starts[0] + len(bare) :]
        return replace(self, pad_token_id=tokenizer.pad_token_id, target_start=tuple(start), target_end=tuple(end))

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """The label is a text, or a list of texts that are all right: the first is learnt from, all are judged by."""
        labels = label if isinstance(label, list) else [label]
        if not labels or not all(isinstance(one, str) and one.strip() for one in labels):
            raise ValueError("the label is no text, nor a list of texts")
        return texts, labels

    def is_reference(self, value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)

    def labelled(
        self,
        texts: Columns,
        references: Sequence[Any],
        encoder: TextEncoder,  # noqa: ARG002 - rows are complete
        *,
        training: bool,
    ) -> tuple[Columns, Sequence[Any]]:
        """All rows to learn from; of those to be judged on, :data:`JUDGED_ROWS` drawn at random, always the same."""
        if training or len(references) <= JUDGED_ROWS:
            return texts, references
        chosen = sorted(np.random.default_rng(0).choice(len(references), JUDGED_ROWS, replace=False).tolist())
        return tuple([column[at] for at in chosen] for column in texts), [references[at] for at in chosen]

    def texts(self, columns: Columns) -> Sequence[Text]:
        return [self.prefix + text for text in columns[0]]

    # -- training ----------------------------------------------------------------------------------------------------------------

    def head(self) -> dict[str, Any]:
        """The prefix, where ``transformers.pipeline`` reads it, which heeds what a checkpoint says of single tasks first, as T5's
        do: that goes."""
        return {"prefix": self.prefix or None, "task_specific_params": None}

    def generation(self) -> dict[str, Any]:
        """As long as the model finds right, up to what the task allows. That is said as ``max_length``, which counts the token that
        an answer starts from: ``transformers.pipeline`` has a ``max_new_tokens`` of its own, and heeds no model's."""
        greedy = {"early_stopping": False, "length_penalty": 1.0} if self.num_beams == 1 else {}  # these are of several beams
        return {
            "min_length": 0,
            "max_length": self.max_new_tokens + 1,
            "max_new_tokens": None,
            "num_beams": self.num_beams,
        } | greedy

    def learnt(self, references: Sequence[Any], encoder: TextEncoder) -> Sequence[Any]:
        """The first text of each reference as tokens."""
        room = self.max_new_tokens - len(self.target_start) - len(self.target_end)
        found = encoder.plain_ids([first for first, *_ in references])
        return [[*self.target_start, *ids[: max(room, 0)], *self.target_end] for ids in found]

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:  # noqa: ARG002 - of another length
        return {"labels": list(references)}

    def judged(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Any]:  # noqa: ARG002 - a row of the model each
        """The texts that were written."""
        sequences = outputs["sequences"]
        texts: list[Any] = tokenizer.decode_batch(
            np.where(sequences == IGNORED, self.pad_token_id, sequences).tolist(), skip_special_tokens=True
        )
        return texts
