"""The common base of the tasks of encoder-decoders, which generate a text from a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.lengths import target_tokenizer
from export.tasks._generation import ExportedGenerationTask
from export.tasks.base import IGNORED, Label, Prediction, Reference
from export.tasks.trained import TrainedTask
from serving.options import Precision
from serving.runtime.tasks._text2text import Text2TextTask
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Arrays, Features, JsonValue, Origins, Setting, Text, TextColumns

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

EVALUATED_ROWS = 1000
"""Maximum number of rows for evaluation: an answer is generated for each, token by token."""


@dataclass(frozen=True, kw_only=True)
class RewritingTask(ExportedGenerationTask[Text2TextTask], TrainedTask):
    """Trains and exports encoder-decoders. The served half has the prefix that the model expects in front of every text.

    Attributes:
        max_new_tokens: Maximum tokens of an answer. Longer targets are truncated.
        num_beams: Beams of the beam search.
        pad_token_id: Padding token of the checkpoint's tokenizer.
        target_start: Tokens that the tokenizer puts before a target.
        target_end: Tokens that the tokenizer puts behind a target.
        target_encoder: Tokenizes targets, if they have a tokenizer of their own; None: as texts.
    """

    max_new_tokens: int = 128
    num_beams: int = 1
    pad_token_id: int = -1
    target_start: tuple[int, ...] = ()
    target_end: tuple[int, ...] = ()
    target_encoder: TextEncoder | None = field(default=None, compare=False, repr=False)

    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    auto_model: ClassVar[str] = "AutoModelForSeq2SeqLM"
    architectures: ClassVar[tuple[str, ...]] = ("ForConditionalGeneration", "MarianMTModel", "T5WithLMHeadModel")
    generates: ClassVar[bool] = True
    several_answers: ClassVar[bool] = True
    fits_length: ClassVar[bool] = True
    token_level: ClassVar[bool] = True
    reads_digits: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, Setting]] = {
        "prefix": Setting(str, help="Text put in front of every text."),
        "max_new_tokens": Setting(int, minimum=1, help="Maximum tokens of an answer."),
        "num_beams": Setting(int, minimum=1, help="Beams of the beam search."),
    }

    @property
    def model_outputs(self) -> tuple[str, ...]:
        """Return the generated sequences."""
        return ("sequences",)

    @classmethod
    def checkpoint_settings(
        cls, config: Mapping[str, object], files: Mapping[str, object], chosen: Mapping[str, JsonValue]
    ) -> dict[str, JsonValue]:
        """Read the prefix that the checkpoint was fine-tuned with, as ``transformers.pipeline`` finds it.

        Raises:
            ValueError: The checkpoint is not an encoder-decoder.
        """
        if not config.get("is_encoder_decoder"):
            raise ValueError("it is not an encoder-decoder and cannot generate a target text")
        tasks = cast("Mapping[str, Mapping[str, str]]", config.get("task_specific_params") or {})
        prefix = tasks.get(cls.name, {}).get("prefix") or config.get("prefix") or ""
        return {"prefix": cast(str, prefix)} | super().checkpoint_settings(config, files, chosen)

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003 - texts are the labels
        """Accept any rows of single texts."""
        if pair:
            raise ValueError(f"{cls.name} trains on single texts, not on pairs")
        return cls(served=cast(Text2TextTask, cls.served_class()))

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool) -> Self:  # noqa: ARG003 - the checkpoint itself says more
        """Accept any encoder-decoder; see :meth:`bound_to`."""
        if pair:
            raise ValueError(f"{cls.name} takes single texts, not pairs")
        return cls(served=cast(Text2TextTask, cls.served_class()))

    def bound_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, object]) -> Self:
        """Return the task with the served half of a checkpoint."""
        found = self.defaults(model, tokenizer, config)
        start = found.bos_token_id if found.decoder_start_token_id is None else found.decoder_start_token_id
        if start is None:
            raise ValueError("it says no token with which the decoder begins (decoder_start_token_id)")
        served = replace(
            self.served,
            generation=dict(found.generation),
            model_generation=dict(found.model_generation),
            vocab_size=model.get_output_embeddings().weight.shape[0],
            bos_token_id=found.bos_token_id,
            pad_token_id=found.pad_token_id,
            prefix=self.served.prefix or found.prefix,
            decoder_start_token_id=start,
        )
        return replace(self, served=served)

    @property
    def evaluation_settings(self) -> dict[str, JsonValue]:
        """Return the settings that only evaluation needs, without the tokenizer of targets, which the checkpoint has."""
        return {name: value for name, value in super().evaluation_settings.items() if name != "target_encoder"}

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Find the tokens that the tokenizer puts around a target."""
        if tokenizer.pad_token_id is None:
            raise ValueError("its tokenizer has no pad_token")
        own = target_tokenizer(tokenizer)
        bare = tokenizer(**{"text" if own is None else "text_target": "a"}, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text_target="a")["input_ids"]
        starts = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
        if not starts:
            raise ValueError("its tokenizer tokenizes targets differently from texts")
        start, end = whole[: starts[0]], whole[starts[0] + len(bare) :]
        return replace(
            self,
            pad_token_id=tokenizer.pad_token_id,
            target_start=tuple(start),
            target_end=tuple(end),
            target_encoder=None if own is None else TextEncoder(own, max_length=self.max_new_tokens, names=(), padding={}),
        )

    # -- rows -----------------------------------------------------------------------------------------------------------------

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read a text, or a list of texts that are all right: the first is trained on, all are used for evaluation."""
        labels = label if isinstance(label, list) else [label]
        if not labels or not all(isinstance(one, str) and one.strip() for one in labels):
            raise ValueError("the label is neither a text nor a list of texts")
        return texts, cast(Label, labels)

    def reference(self, label: Label) -> Reference:
        """Return the right texts."""
        return label

    def is_reference(self, value: object) -> bool:
        """Accept a list of texts."""
        return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)

    def prepare_rows(
        self,
        texts: TextColumns,
        references: Sequence[Reference],
        encoder: TextEncoder,  # noqa: ARG002 - rows are complete
        *,
        training: bool,
    ) -> tuple[TextColumns, Sequence[Reference]]:
        """Return all rows for training; for evaluation :data:`EVALUATED_ROWS` drawn at random, always the same ones."""
        if training or len(references) <= EVALUATED_ROWS:
            return texts, references
        chosen = sorted(np.random.default_rng(0).choice(len(references), EVALUATED_ROWS, replace=False).tolist())
        return tuple([column[at] for at in chosen] for column in texts), [references[at] for at in chosen]

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Put the prefix in front of the texts."""
        return [self.served.prefix + text for text in columns[0]]

    # -- training and evaluation ----------------------------------------------------------------------------------------------

    def head(self) -> dict[str, object]:
        """Write the prefix where ``transformers.pipeline`` reads it.

        The pipeline first reads ``task_specific_params``, which T5's checkpoints have, so that is removed.
        """
        return {"prefix": self.served.prefix or None, "task_specific_params": None}

    def generation_settings(self) -> dict[str, object]:
        """Return settings of ``generate`` that let the model decide the length, up to the task's maximum, and yield tokens alone.

        The maximum is written as ``max_length``, which counts the start token too, because ``transformers.pipeline`` has a
        ``max_new_tokens`` of its own and ignores the model's.
        """
        settings: dict[str, object] = {
            "min_length": 0,
            "max_length": self.max_new_tokens + 1,
            "max_new_tokens": None,
            "num_beams": self.num_beams,
            "return_dict_in_generate": False,
            "output_hidden_states": False,
            "output_attentions": False,
            "output_scores": False,
        }
        if self.num_beams == 1:  # reset settings of beam search
            settings |= {"early_stopping": False, "length_penalty": 1.0}
        return settings

    def encode_targets(self, references: Sequence[Reference], encoder: TextEncoder) -> Sequence[Reference]:
        """Tokenize the first text of each reference."""
        room = self.max_new_tokens - len(self.target_start) - len(self.target_end)
        found = (self.target_encoder or encoder).plain_ids([first for first, *_ in cast("Sequence[list[str]]", references)])
        return [[*self.target_start, *ids[: max(room, 0)], *self.target_end] for ids in found]

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:  # noqa: ARG002
        """Return the tokens of the targets, which have lengths of their own."""
        return {"labels": list(references)}

    def evaluate(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Prediction]:  # noqa: ARG002
        """Decode the generated sequences."""
        sequences = outputs["sequences"]
        texts: list[Prediction] = tokenizer.decode_batch(
            np.where(sequences == IGNORED, self.pad_token_id, sequences).tolist(), skip_special_tokens=True
        )
        return texts
