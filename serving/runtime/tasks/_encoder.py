"""The base of the tasks whose model answers in one execution: text → token ids → outputs → answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..types import Arrays, Features, Origins, Setting, Text, TextColumns
from .base import ServedTask

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..tokenization import TextEncoder


@dataclass(frozen=True, kw_only=True)
class EncoderTask(ServedTask):
    """A task whose rows become the rows of one execution of the model.

    Attributes:
        pair: Whether a row is two texts, which the model must tell apart.
        truncation: Whether text beyond what the model accepts is truncated. If false, such a row is refused.
    """

    pair: bool = False
    truncation: bool = True

    options: ClassVar[Mapping[str, Setting]] = {"truncation": Setting(bool, help="Truncate text that is too long.")}
    model_outputs: ClassVar[tuple[str, ...]] = ("logits",)
    """Outputs of the served graph that :meth:`postprocess` reads."""
    carries_metadata: ClassVar[bool] = False
    """Whether :meth:`preprocess` makes metadata, which then travels around the model."""
    needs_tokenizer: ClassVar[bool] = False
    """Whether answers contain decoded tokens (see :meth:`decoded_postprocess`), so that the last step needs the tokenizer."""
    token_level: ClassVar[bool] = False
    """Whether the second axis of the :attr:`model_outputs` is the token position."""
    fan_out: ClassVar[int] = 1
    """Model rows that the model must accept at once, as a multiple of the rows of the largest request."""

    def long_example(self, repeats: int) -> dict[str, str]:
        """Return a request that fills the model, for warm-up. Default: the example, repeated within each tensor."""
        return {name: " ".join([text] * repeats) for name, text in self.example.items()}

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Convert request rows to rows for the tokenizer: each text, or each pair of texts.

        An empty second text is none, as the tokenizers of ``transformers`` take it: the row has no second separator then.
        """
        if not self.pair:
            return columns[0]
        return [(first, second) if second else first for first, second in zip(*columns, strict=True)]

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Convert request rows to model rows. Default: one model row each.

        Raises:
            ValueError: A row cannot be used. The message is for the client.
        """
        encodings = encoder.encode(self.texts(columns), truncation=self.truncation)
        return Features(encodings, Origins(np.arange(len(encodings))))

    @abstractmethod
    def postprocess(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Convert the model's outputs for the rows of many requests to answers.

        Args:
            outputs: :attr:`model_outputs`, ``[model rows, …]``. An axis of token positions may be longer than a row.
            origins: Where the model rows come from.

        Returns:
            The tensors of :meth:`outputs`, ``[request rows, *dims]``.
        """

    def decoded_postprocess(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> Arrays:  # noqa: ARG002
        """Convert the model's outputs to answers with decoded tokens, for tasks with :attr:`needs_tokenizer`."""
        return self.postprocess(outputs, origins)
