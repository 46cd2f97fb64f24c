"""Defines what fine-tuning needs of a task."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np

from export.tasks.base import Label, Prediction, Reference, Task
from serving.runtime.types import Arrays, Features, JsonValue, Origins, TextColumns

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from serving.runtime.tokenization import TextEncoder


class Baseline(NamedTuple):
    """What can be predicted without looking at the texts.

    Attributes:
        description: How, in words.
        predictions: One per evaluated row.
    """

    description: str
    predictions: list[Prediction]


@dataclass(frozen=True, kw_only=True)
class TrainedTask(Task):
    """A task that checkpoints are fine-tuned for."""

    generates: ClassVar[bool] = False
    """Whether the model is an encoder-decoder that reads a row and then generates its answer token by token."""
    causal: ClassVar[bool] = False
    """Whether the model is a causal language model, trained to predict the next token."""
    token_level: ClassVar[bool] = False
    """Whether the second axis of the model's :attr:`heads` is the token position."""
    fits_length: ClassVar[bool] = False
    """Whether truncated text is lost to the model: the default length is then chosen so that most rows fit."""
    several_answers: ClassVar[bool] = False
    """Whether rows of equal texts may well have different answers, so that these are no conflicting labels."""
    default_max_length: ClassVar[int] = 128
    """Default number of tokens of a row in fine-tuning."""

    @classmethod
    @abstractmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:
        """Bind the task to the labels of a training set.

        Args:
            labels: Labels of all rows, as :meth:`read_row` gave them.
            names: Label names in order if the data set defines them, otherwise empty.
            pair: Whether rows are two texts.

        Raises:
            ValueError: The labels cannot be used for training.
        """

    def head(self) -> dict[str, object]:
        """Return the arguments of ``from_pretrained`` that define the head: ``num_labels``, ``id2label`` … Default: none."""
        return {}

    def generation_settings(self) -> dict[str, object]:
        """Return settings of ``generate``, for a model that :attr:`generates`."""
        return {}

    def files_written(self, max_length: int) -> dict[str, JsonValue]:  # noqa: ARG002
        """Return the :attr:`checkpoint_files` of a fine-tuned checkpoint, by relative path, which record how it is used."""
        return {}

    def training_features(self, texts: TextColumns, encoder: TextEncoder) -> Features:
        """Convert the texts of :meth:`prepare_rows` to model rows for training. Default: as for evaluation."""
        return self.features(texts, encoder)

    def encode_targets(self, references: Sequence[Reference], encoder: TextEncoder) -> Sequence[Reference]:  # noqa: ARG002
        """Convert references to the form that :meth:`targets` takes. Default: as they are."""
        return references

    @abstractmethod
    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:
        """Build the training targets.

        Args:
            features: The training rows, in order.
            references: Of the same rows, as :meth:`encode_targets` gives them.

        Returns:
            By the argument name of the model's ``forward``, one per model row: a value, or a list as long as the row's tokens.
        """

    def preprocess_logits_for_metrics(
        self,
        outputs: torch.Tensor | tuple[torch.Tensor, ...],
        targets: torch.Tensor,  # noqa: ARG002 - most outputs are small
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Reduce the outputs of a batch to what evaluation needs (as the argument of ``transformers.Trainer``). Default: all.

        Args:
            outputs: The model's heads, one tensor or several, ``[model rows, …]``.
            targets: ``labels`` of the same rows.
        """
        return outputs

    def fitted_settings(self) -> Mapping[str, Sequence[JsonValue]]:
        """Return the settings to choose after training, on the validation rows, with the values to try, the default first."""
        return {}

    def baseline(self, training: Sequence[Reference], evaluated: Sequence[Reference]) -> Baseline | None:  # noqa: ARG002
        """Predict every row without its text, for comparison with the model. Default: there is no such prediction.

        Args:
            training: References of the training rows.
            evaluated: References of the rows to predict.
        """
        return None

    @abstractmethod
    def evaluate(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Prediction]:
        """Convert the model's outputs, collected while it is trained, to one prediction per labelled row.

        Args:
            outputs: :attr:`model_outputs`, ``[model rows, …]``, as :meth:`preprocess_logits_for_metrics` left them.
            origins: Where the model rows come from.
            tokenizer: The checkpoint's tokenizer.
        """


@dataclass(frozen=True, kw_only=True)
class AugmentedTask(TrainedTask):
    """A trained task whose batches are changed at random each time they are used."""

    @abstractmethod
    def augment_batch(self, batch: Arrays, generator: np.random.Generator) -> Arrays:
        """Return the inputs and targets ``[model rows, longest]`` that a batch is trained with this time."""


@dataclass(frozen=True, kw_only=True)
class OwnLossTask(TrainedTask):
    """A trained task whose model in ``transformers`` has no loss."""

    @abstractmethod
    def loss(self, outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            outputs: :attr:`model_outputs` of the batch's rows, in the order of :meth:`requests`.
            targets: As :meth:`targets` gives them, ``[labelled rows]``.
        """

    @abstractmethod
    def head_outputs(self, heads: Mapping[str, torch.Tensor], feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Compute :attr:`model_outputs` of a batch from the model's heads and its inputs, differentiably."""
