"""Defines what export, verification and benchmarks need of a task whose model answers in one execution."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Generic

import numpy as np
from typing_extensions import TypeVar

from export.tasks.base import Prediction
from export.tasks.exported import ExportedTask
from serving.runtime.tasks._encoder import EncoderTask
from serving.runtime.types import Arrays, Features, Flags, JsonValue, Origins, Text, TextColumns

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx
    from tokenizers import Tokenizer

    from serving.runtime.tokenization import TextEncoder

Encoder_co = TypeVar("Encoder_co", bound=EncoderTask, covariant=True, default=EncoderTask)


@dataclass(frozen=True, kw_only=True)
class ExportedEncoderTask(ExportedTask[Encoder_co], Generic[Encoder_co]):
    """A task whose checkpoints are exported as one graph, and answer in one execution of it."""

    optimum_task: ClassVar[str] = ""
    """Name of the task in Optimum, if it differs from :attr:`name`."""
    has_output_head: ClassVar[bool] = False
    """Whether :meth:`add_output_head` appends nodes to the exported graph."""

    @property
    def pair(self) -> bool:
        """Return whether a row is a pair of texts."""
        return self.served.pair

    @property
    def evaluation_options(self) -> Mapping[str, JsonValue]:
        """Return the request parameters for training and verification, if the metric needs more than the default answer."""
        return {}

    @property
    def model_outputs(self) -> tuple[str, ...]:
        """Return the outputs of the served graph."""
        return self.served.model_outputs

    @property
    def plain_texts(self) -> int:
        """Return the number of a request row's texts, counted from the first one, that are plain text and no JSON."""
        return len(self.served.inputs())

    @property
    def truncated_texts(self) -> Sequence[int]:
        """Return the positions of those of the :attr:`plain_texts` that are truncated in a row that is too long."""
        return range(self.plain_texts)

    # -- rows of a data set ---------------------------------------------------------------------------------------------------

    @property
    def text_columns(self) -> int:
        """Return the number of the served half's inputs."""
        return len(self.served.inputs())

    def texts(self, columns: TextColumns) -> Sequence[Text]:
        """Convert the texts of a data set's rows to rows for the tokenizer, as the served half does."""
        return self.served.texts(columns)

    def features(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Convert the texts of a data set's rows to model rows, as the served half does."""
        return self.evaluated.preprocess(self.requests(columns), encoder)

    # -- the exported graph ---------------------------------------------------------------------------------------------------

    def add_output_head(self, model: onnx.ModelProto) -> str | None:  # noqa: ARG002 - most graphs are complete
        """Append to a raw fp32 graph, in place, the nodes that compute :attr:`model_outputs` from :attr:`heads`. Default: none.

        Returns:
            A description of the change for the manifest; None if nothing is appended.

        Raises:
            ExportError: The graph lacks an input that the head needs.
        """
        return None

    def apply_output_head(self, heads: Arrays, feed: Arrays) -> Arrays:  # noqa: ARG002
        """Compute in numpy what :meth:`add_output_head` appends, for the PyTorch original.

        Args:
            heads: Outputs of the model in ``transformers``, ``[model rows, …]``.
            feed: Its inputs, ``[model rows, longest]``.
        """
        return heads

    # -- evaluation -----------------------------------------------------------------------------------------------------------

    @cached_property
    def evaluated(self) -> Encoder_co:
        """Return the served half with the :attr:`evaluation_options` in place of its defaults."""
        return self.served.with_options(self.evaluation_options)

    def answers(self, outputs: Arrays, origins: Origins) -> Arrays:
        """Compute the served answers, and the additional arrays that :meth:`agreement` and :meth:`ties` need.

        Args:
            outputs: :attr:`model_outputs`, ``[model rows, …]``.
            origins: Where the model rows come from.
        """
        return self.evaluated.postprocess(outputs, origins)

    def evaluate(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Prediction]:  # noqa: ARG002
        """Convert the model's outputs, collected while it is trained, to one prediction per labelled row."""
        return self.predictions(self.answers(outputs, origins))

    @abstractmethod
    def predictions(self, answers: Arrays) -> list[Prediction]:
        """Convert answers to what the metric takes: one per labelled row, in the form of :meth:`reference`."""

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:  # noqa: ARG002 - most scores are not probabilities
        """Return the probability of each prediction, ``[labelled rows]``, if each prediction is one of several choices."""
        return None

    @abstractmethod
    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """Compare a variant's answers with the original's: ``[labelled rows]``, 1 if they are the same, 0 if they differ."""

    @abstractmethod
    def ties(self, original: Arrays) -> Flags:
        """Find the answers of the original that are nearly tied, so that either answer counts as equal: ``[labelled rows]``."""

    def near_ties(self, answers: Arrays, original: Arrays) -> int:  # noqa: ARG002 - most tasks have one decision a row
        """Count the labels within rows that :meth:`agreement` counts as equal because they are tied; see also :meth:`ties`."""
        return 0

    def row_agreement(self, answers: Arrays, original: Arrays) -> Flags | None:  # noqa: ARG002
        """Find the rows whose whole answer is the original's: ``[labelled rows]``.

        None, the default: :meth:`agreement` compares whole answers already, or there is no decision.
        """
        return None

    @property
    def labels_per_row(self) -> int:
        """Return the number of labels in a typical answer, all of which :meth:`row_agreement` compares."""
        return 3

    def score_changes(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64] | None:  # noqa: ARG002
        """Return how far the scores of the original's labels are from the original's, 0 to 1, in any order.

        Only labels whose score is part of both answers. None, the default: scores are no probabilities.
        """
        return None
