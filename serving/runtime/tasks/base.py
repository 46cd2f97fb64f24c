"""What a task must say about itself. Everything else (training, gates, configs, wiring, server, client) is derived from it.

A task's file is read where models are trained and verified, and copied into the repository, where Triton runs it: it may import
the standard library and numpy, and nothing heavier at its top. What serving needs of it stands in :class:`~._served.ServedTask`,
what checkpoints, data, training and judging need in :class:`Task`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from ._served import Arrays, Columns, Features, Option, Options, Origins, ServedTask, Tensor, Text, TooManyRowsError

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Tokenizer

    from ..tokenization import TextEncoder

__all__ = ["Arrays", "Columns", "Features", "Option", "Options", "Origins", "Task", "Tensor", "Text", "TooManyRowsError"]


@dataclass(frozen=True, kw_only=True)
class Task(ServedTask):
    """A task bound to one checkpoint. Its dataclass fields are its settings: JSON-ready, recorded in the bundle, read in Triton."""

    auto_model: ClassVar[str]
    """Auto class of ``transformers`` that loads a checkpoint of this task (a name: nothing here imports torch)."""
    architectures: ClassVar[tuple[str, ...]] = ()
    """What the names of its models end in, where that is not what :attr:`auto_model` does."""
    optimum_task: ClassVar[str] = ""
    """As Optimum exports it, where that has another :attr:`name`."""
    trained_as: ClassVar[str] = ""
    """The task that its checkpoints are fine-tuned for, where that is another one."""
    exported: ClassVar[bool] = True
    """Whether its checkpoints are exported and served; those of the others are trained, for now, and no more."""
    generates: ClassVar[bool] = False
    """Whether the model in ``transformers`` reads a row whole and then writes its answer token by token (an encoder-decoder)."""
    causal: ClassVar[bool] = False
    """Whether the model reads a text from its beginning on and is taught what comes next, where each text ends too."""
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    """The outputs of the model in ``transformers`` that matter, in the order it gives them."""
    tail: ClassVar[str] = ""
    """Function of ``export.tails`` that appends to the exported graph what :meth:`reduced` computes; empty: nothing."""
    judged_options: ClassVar[Mapping[str, Any]] = {}
    """What training and verification ask for, where the answer to a request that asks for nothing says too little to judge by."""
    setup: ClassVar[Mapping[str, Option]] = {}
    """What may be chosen for a checkpoint besides the defaults of :attr:`options`, by name; each is a field too."""
    checkpoint_files: ClassVar[tuple[str, ...]] = ()
    """JSON files of a checkpoint besides ``config.json`` that :meth:`checkpoint_settings` reads: patterns of paths within it."""
    own_loss: ClassVar[bool] = False
    """Whether :meth:`loss` gives the loss, because the model in ``transformers`` has none."""
    token_level: ClassVar[bool] = False
    """Whether the second axis of those outputs is the position in the row."""
    grouped: ClassVar[bool] = False
    """Whether the model in ``transformers`` takes all rows of a request row along an axis of their own, ``[request rows, rows,
    tokens]``. The served graph never does."""
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": "label"}
    """Columns of a data set that hold the texts and the label, where its user names no others; no label: rows need none. With
    ``choices`` among them, several columns of choices may stand instead of the one."""
    reads_digits: ClassVar[bool] = True
    """Whether labels that are all digits, in a file that knows text alone, are numbers."""
    cut: ClassVar[bool] = False
    """Whether what a text has beyond that length is lost to the model: a length is then chosen that most rows have."""
    default_max_length: ClassVar[int] = 128
    """Tokens kept of a row in fine-tuning, where its user does not say: short rows train fast, and what is served is cut alike."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool) -> Self:
        """Bind the task to a checkpoint's ``config.json``; ``pair`` says whether it was fine-tuned on two texts.

        Raises:
            ValueError: the checkpoint cannot be served for this task; the message says why.
        """

    @classmethod
    @abstractmethod
    def from_labels(cls, labels: Sequence[Any], *, names: Sequence[str], pair: bool) -> Self:
        """Bind the task to the labels of a training set.

        Args:
            labels: of all rows, as :meth:`read_row` gave them.
            names: label names in order where the data set itself fixes them; empty otherwise.

        Raises:
            ValueError: nothing can be learnt from them.
        """

    def with_tokenizer(self, tokenizer: Any) -> Self:  # noqa: ARG002 - most tasks need nothing of it
        """The task bound to the checkpoint's tokenizer (``transformers.PreTrainedTokenizerFast``) too, before it is put to use.

        Raises:
            ValueError: the checkpoint cannot be served for this task with it; the message says why.
        """
        return self

    @classmethod
    def checkpoint_settings(cls, config: Mapping[str, Any], files: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Settings that a checkpoint itself says, whether it is to be trained or served, and those that a user chose over it.

        Args:
            config: its ``config.json``.
            files: contents of its :attr:`checkpoint_files` by path in its folder.
            chosen: as :meth:`chosen_settings` gave them.

        Raises:
            ValueError: the checkpoint cannot be used for this task; the message says why.
        """
        return dict(chosen)

    @classmethod
    def checkpoint_length(cls, files: Mapping[str, Any]) -> int | None:  # noqa: ARG003
        """Tokens of a row that a checkpoint itself says it is used with, where that may be less than the model takes."""
        return None

    @classmethod
    def chosen_settings(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that a user chose, checked.

        Args:
            given: values by name, or strings that say them.

        Raises:
            ValueError: one cannot be chosen, is of another kind, or not allowed.
        """
        known = {**cls.options, **cls.setup}
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{cls.name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        read = {name: known[name].read(value) if isinstance(value, str) else value for name, value in given.items()}
        return {name: known[name].check(name, value) for name, value in read.items()}

    def files_written(self, max_length: int) -> dict[str, Any]:  # noqa: ARG002
        """Contents of the :attr:`checkpoint_files` of a fine-tuned checkpoint by path, so that it says itself how it is used."""
        return {}

    # -- rows of a data set ---------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """The cells of a data set's row → the texts of a request (strings, as :meth:`inputs` has them), and the label, JSON-ready.

        Raises:
            ValueError: a cell holds what it must not.
        """

    @classmethod
    def kept_together(cls, texts: tuple[str, ...]) -> Any:
        """What rows have in common, as a string or a tuple of strings, that must all be held out or none: here all their texts."""
        return texts

    @property
    def text_columns(self) -> int:
        """How many columns of a data set :meth:`read_row` turns into texts."""
        return len(self.inputs())

    def requests(self, columns: Columns) -> Columns:
        """Texts of a data set's rows → rows of requests, as many or a multiple: all rows' first, then all rows' second …"""
        return columns

    @abstractmethod
    def reference(self, label: Any) -> Any:
        """A label as :meth:`read_row` gave it → what :meth:`predictions` is held against, JSON-ready.

        Raises:
            ValueError: the checkpoint knows no such label.
        """

    @abstractmethod
    def is_reference(self, value: Any) -> bool:
        """Whether :meth:`reference` could have given ``value``, which was read from a file."""

    def judged_by(self, labels: Sequence[Any], *, names: Sequence[str]) -> Self:  # noqa: ARG002 - most know their labels
        """The task, ready to be held against rows with those labels (as for :meth:`from_labels`). Most know their labels already.

        Raises:
            ValueError: it cannot be held against them.
        """
        return self

    def labelled(
        self,
        texts: Columns,
        references: Sequence[Any],
        encoder: TextEncoder,  # noqa: ARG002 - most tasks' rows are complete
        *,
        training: bool,  # noqa: ARG002
    ) -> tuple[Columns, Sequence[Any]]:
        """Rows of a data set → those to train or to judge on: here the same. Tasks that make their labels of plain text do so here.

        Args:
            texts: by column.
            references: as :meth:`reference` gave them.
            training: rows to learn from, not those to be judged on.

        Returns:
            Texts and references, as many of one as of the other; rows that are of no use are left out.

        Raises:
            ValueError: a row cannot be used; the message shows it.
        """
        return texts, references

    # -- training -------------------------------------------------------------------------------------------------------------

    def head(self) -> dict[str, Any]:
        """What ``from_pretrained`` must be told about the head to train (``num_labels``, ``id2label``, ``problem_type`` …): here
        nothing."""
        return {}

    def training_features(self, texts: Columns, encoder: TextEncoder) -> Features:
        """Texts of :meth:`labelled` rows → rows for the model while it is trained: here as requests become them."""
        return self.features(self.requests(texts), encoder, self.request_options(self.judged_options))

    def learnt(self, references: Sequence[Any], encoder: TextEncoder) -> Sequence[Any]:  # noqa: ARG002 - most are numbers already
        """References of :meth:`labelled` rows → as :meth:`targets` takes them: here as they are."""
        return references

    @abstractmethod
    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:
        """What the model is trained towards, by the name its ``forward`` has for it, one per model row: a value, or a list as long
        as the row's tokens.

        Args:
            features: of the training rows, in order.
            references: of the same rows, as :meth:`learnt` gives them.
        """

    def generation(self) -> dict[str, Any]:
        """Settings of ``generate`` for a model that :attr:`generates <generates>`, by the names ``transformers`` has for them."""
        return {}

    def altered(self, batch: Arrays, generator: np.random.Generator) -> Arrays:  # noqa: ARG002 - most learn from rows as they are
        """Inputs and targets ``[model rows, longest]`` of a batch → those it is shown this time: here as they are."""
        return batch

    def loss(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Any:
        """The loss of a batch, a tensor of one number, where the task has its :attr:`own_loss`.

        Both are torch's tensors, used through their methods alone: nothing here imports torch.

        Args:
            outputs: :attr:`outputs_read` of the batch's rows in the order of :meth:`requests`.
            targets: as :meth:`targets` gives them, ``[labelled rows]``.
        """
        raise NotImplementedError(f"{self.name} is trained with the model's own loss")

    def reduced(self, heads: Arrays, feed: Arrays) -> Arrays:  # noqa: ARG002 - most tails are empty
        """What the graph's :attr:`tail` computes, in numpy, for a model that has none: one is held against the other.

        Args:
            heads: outputs of the model in ``transformers``, ``[model rows, …]``.
            feed: its inputs, ``[model rows, longest]``. Both are torch's tensors where a task with :attr:`own_loss` is trained.
        """
        return heads

    def kept(self, outputs: Any, targets: Any) -> Any:  # noqa: ARG002 - what most models say of a row is small
        """What is kept of a batch to be judged by, here all: torch's tensors, used through their methods alone.

        Args:
            outputs: the model's heads, a tensor or several, ``[model rows, …]``.
            targets: ``labels`` of the same rows.
        """
        return outputs

    def candidates(self) -> Mapping[str, Sequence[Any]]:
        """Settings that are chosen after training, by the main metric on rows that were not learnt from: values to try, the usual
        one first. Here none."""
        return {}

    # -- judging --------------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def metric(self) -> str:
        """Local metric module under ``export/metrics``."""

    @property
    @abstractmethod
    def main_metric(self) -> str:
        """The figure of that metric that gates and best-epoch selection look at; higher is better, 1 is best."""

    @abstractmethod
    def predictions(self, answers: Arrays) -> list[Any]:
        """Tensors of :meth:`outputs` → what the metric takes, one per labelled row, as :meth:`reference` gives them."""

    def judged(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Any]:  # noqa: ARG002 - most answers need none
        """What the model said of rows while it was trained → what :meth:`predictions` gives.

        Args:
            outputs: :attr:`outputs_read`, as they were :meth:`kept`.
        """
        return self.predictions(self.answers(outputs, origins, self.request_options(self.judged_options)))

    def figures(
        self,
        outputs: Arrays,  # noqa: ARG002 - most metrics say enough
        original: Arrays,  # noqa: ARG002
        origins: Origins,  # noqa: ARG002
        references: Sequence[Any],  # noqa: ARG002
    ) -> dict[str, float]:
        """Figures by name that take more than the answers: of the model's outputs, against the original's and the references."""
        return {}

    def confidence(self, answers: Arrays) -> npt.NDArray[np.float64] | None:  # noqa: ARG002 - most scores are no probabilities
        """``[labelled rows]``: the probability given to each prediction, where predictions are one of several choices."""
        return None

    @abstractmethod
    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """How far a variant's answers are the original's: ``[labelled rows]``, 1 where they are the same, 0 where they are not."""

    @abstractmethod
    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        """``[labelled rows]``: answers of the original that are so close a call that either side of it is right."""

    pipeline_options: ClassVar[Mapping[str, Any]] = {}
    """Options under which the pipeline says what it is held against in a benchmark."""
    has_pipeline: ClassVar[bool] = True
    """Whether ``transformers`` has a pipeline that gives what :meth:`pipeline_answers` gives."""

    def ask_pipeline(self, pipeline: Any, rows: Sequence[Sequence[str]], *, max_length: int) -> list[Any]:
        """What a ``transformers.pipeline`` gives for rows of requests, one item each, all in one batch.

        Args:
            max_length: tokens kept of a row.
        """
        inputs = [{"text": row[0], "text_pair": row[1]} if self.pair else row[0] for row in rows]
        found: list[Any] = pipeline(inputs, batch_size=len(inputs), truncation=True, max_length=max_length, **self.pipeline_options)
        return found
