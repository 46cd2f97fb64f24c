"""What a task must say about itself. Everything else (training, gates, configs, wiring, server, client) is derived from it.

A task's file is read where models are trained and verified, and copied into the repository, where Triton runs it: it may import
the standard library and numpy, and nothing heavier at its top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Encoding, Tokenizer

    from ..tokenization import TextEncoder

Text = str | tuple[str, str]
"""One row for the tokenizer: a text, or a pair of texts."""

Columns = Sequence[Sequence[str]]
"""Rows by column: one sequence of strings per tensor of :meth:`Task.inputs`."""

Arrays = dict[str, npt.NDArray[Any]]
"""Tensors by name; the first axis of each is the row."""

Options = Mapping[str, Any]
"""What a request asks for besides its tensors, every option of the task with its value."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the ensemble as Triton configures it.

    Args:
        name: as clients write it.
        dtype: Triton's name: ``TYPE_STRING``, ``TYPE_FP32``, ``TYPE_INT64`` …
        dims: shape of one row, without the batch dimension.
    """

    name: str
    dtype: str
    dims: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Option:
    """Something a request may ask for, as a Triton request parameter. The task's field of the same name is its default.

    Args:
        kind: ``bool``, ``int``, ``float`` or ``str``.
        choices: the strings allowed; empty: any.
        minimum: the least number allowed.
    """

    kind: type
    choices: tuple[str, ...] = ()
    minimum: float | None = None

    def check(self, name: str, value: Any) -> Any:
        """``value`` as the option's kind.

        Raises:
            ValueError: it is of another kind, or not allowed; the message says what is.
        """
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.kind is float and whole:
            value = float(value)
        elif type(value) is not self.kind:
            raise ValueError(f"option {name} must be {_KINDS[self.kind]}, not {value!r:.80}")
        if self.choices and value not in self.choices:
            raise ValueError(f"option {name} must be one of {', '.join(self.choices)}, not {value!r:.80}")
        if self.minimum is not None and not value >= self.minimum:  # no number (NaN) is not either
            raise ValueError(f"option {name} must be {self.minimum:g} or more, not {value!r:.80}")
        return value

    def read(self, text: str) -> Any:
        """What a command line says, as the option's kind where it can be read as one."""
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Origins:
    """Where each row that the model sees comes from: one request row may need several (windows of a long text, candidate labels).

    Args:
        owners: ``[model rows]``, position of the request row that each was made of; ascending, and none is left out.
        notes: one per model row: what its answer needs besides what the model says of it. Empty where the task
            :attr:`carries <Task.carries_notes>` none.
    """

    owners: npt.NDArray[np.int64]
    notes: Sequence[bytes] = ()

    @property
    def count(self) -> int:
        """How many request rows there are."""
        return int(self.owners[-1]) + 1 if len(self.owners) else 0


@dataclass(frozen=True)
class Features:
    """Rows for the model: their tokens, and where they come from."""

    encodings: Sequence[Encoding]
    origins: Origins


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A task bound to one checkpoint. Its dataclass fields are its settings: JSON-ready, recorded in the bundle, read in Triton."""

    pair: bool = False
    """Whether a row is two texts, so that the model must tell one from the other."""
    truncation: bool = True
    """Whether text beyond what the model takes is cut; a request that asks for false is refused instead."""

    name: ClassVar[str]
    """As ``transformers.pipeline`` and Optimum call it."""
    auto_model: ClassVar[str]
    """Auto class of ``transformers`` that loads a checkpoint of this task (a name: nothing here imports torch)."""
    optimum_task: ClassVar[str] = ""
    """As Optimum exports it and as its checkpoints are fine-tuned, where that has another :attr:`name`."""
    heads: ClassVar[tuple[str, ...]] = ("logits",)
    """The outputs of the model in ``transformers`` that matter, in the order it gives them."""
    outputs_read: ClassVar[tuple[str, ...]] = ("logits",)
    """The outputs of the served graph, which :meth:`answers` reads: the heads, or what the :attr:`tail` makes of them."""
    tail: ClassVar[str] = ""
    """Function of ``export.tails`` that appends to the exported graph what :meth:`reduced` computes; empty: nothing."""
    options: ClassVar[Mapping[str, Option]] = {"truncation": Option(bool)}
    """What requests may ask for, by name; each is a field too, its default."""
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
    carries_notes: ClassVar[bool] = False
    """Whether :meth:`features` gives notes, which then travel around the model."""
    needs_tokenizer: ClassVar[bool] = False
    """Whether :meth:`worded_answers` needs the tokenizer, which then travels to the last step too."""
    shaping: ClassVar[frozenset[str]] = frozenset()
    """Those of the options that :meth:`pipeline_answers` must know too, to show what the server answered."""
    fan_out: ClassVar[int] = 1
    """How many times the rows of the largest request the model must be ready to take at once."""
    grouped: ClassVar[bool] = False
    """Whether the model in ``transformers`` takes all rows of a request row along an axis of their own, ``[request rows, rows,
    tokens]``. The served graph never does."""
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": "label"}
    """Columns of a data set that hold the texts and the label, where its user names no others; no label: rows need none. With
    ``choices`` among them, several columns of choices may stand instead of the one."""
    text_keys: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    """What ``transformers.pipeline`` calls the texts of a row where it is written as an object."""
    default_max_length: ClassVar[int] = 128
    """Tokens kept of a row in fine-tuning, where its user does not say: short rows train fast, and what is served is cut alike."""

    # -- from checkpoints and data ---------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], *, pair: bool) -> Self:
        """Bind the task to a checkpoint's ``config.json``; ``pair`` says whether it was fine-tuned on two texts.

        Raises:
            ValueError: the checkpoint cannot be served for this task; the message says why.
        """

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`settings`."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return cls(**values)

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

    def files_written(self, max_length: int) -> dict[str, Any]:  # noqa: ARG002
        """Contents of the :attr:`checkpoint_files` of a fine-tuned checkpoint by path, so that it says itself how it is used."""
        return {}

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

    def settings(self) -> dict[str, Any]:
        """The dataclass fields, JSON-ready."""
        return asdict(self)

    @property
    def text_columns(self) -> int:
        """How many columns of a data set :meth:`read_row` turns into texts."""
        return len(self.inputs())

    @property
    def row_keys(self) -> tuple[str, ...]:
        """Those of :attr:`text_keys` that a row has, in the order of :meth:`inputs`."""
        return self.text_keys[: len(self.inputs())]

    def requests(self, columns: Columns) -> Columns:
        """Texts of a data set's rows → rows of requests, as many or a multiple: all rows' first, then all rows' second …"""
        return columns

    # -- the ensemble ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def inputs(self) -> tuple[Tensor, ...]:
        """Tensors of a request."""

    @abstractmethod
    def outputs(self) -> tuple[Tensor, ...]:
        """Tensors of an answer."""

    @property
    @abstractmethod
    def example(self) -> dict[str, str]:
        """One request by tensor name: warm-up, readiness probe and the curl line that ``serve`` prints use it."""

    def long_example(self, repeats: int) -> dict[str, str]:
        """A request as long as can be: warm-up uses it. Here the example, repeated within each tensor."""
        return {name: " ".join([text] * repeats) for name, text in self.example.items()}

    def request_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every option of the task: as ``given``, else its default.

        Raises:
            ValueError: one is unknown, of another kind, or not allowed.
        """
        if unknown := [name for name in given if name not in self.options]:
            raise ValueError(f"{self.name} has no option {', '.join(unknown)}; it has {', '.join(self.options)}")
        values = {name: getattr(self, name) for name in self.options}
        return values | {name: self.options[name].check(name, value) for name, value in given.items()}

    def texts(self, columns: Columns) -> Sequence[Text]:
        """Rows for the tokenizer: each text, or each pair of texts."""
        return list(zip(*columns, strict=True)) if self.pair else columns[0]  # type: ignore[return-value]

    def features(self, columns: Columns, encoder: TextEncoder, options: Options) -> Features:
        """Rows of requests that ask for the same ``options`` → rows for the model, here one each.

        Raises:
            ValueError: a row cannot be taken; the message is for its client.
        """
        encodings = encoder.encode(self.texts(columns), truncation=options["truncation"])
        return Features(encodings, Origins(np.arange(len(encodings))))

    def training_features(self, texts: Columns, encoder: TextEncoder) -> Features:
        """Texts of :meth:`labelled` rows → rows for the model while it is trained: here as requests become them."""
        return self.features(self.requests(texts), encoder, self.request_options(self.judged_options))

    def reduced(self, heads: Arrays, feed: Arrays) -> Arrays:  # noqa: ARG002 - most tails are empty
        """What the graph's :attr:`tail` computes, in numpy, for a model that has none: one is held against the other.

        Args:
            heads: outputs of the model in ``transformers``, ``[model rows, …]``.
            feed: its inputs, ``[model rows, longest]``. Both are torch's tensors where a task with :attr:`own_loss` is trained.
        """
        return heads

    @abstractmethod
    def answers(self, outputs: Arrays, origins: Origins, options: Options) -> Arrays:
        """What the model says of many requests' rows at once → the tensors of :meth:`outputs`, ``[request rows, *dims]``; and under
        other names what :meth:`agreement` and :meth:`ties` need of an answer besides.

        Args:
            outputs: :attr:`outputs_read`, ``[model rows, …]``. Where one axis is the position, it may be longer than a row is.
        """

    def worded_answers(
        self,
        outputs: Arrays,
        origins: Origins,
        options: Options,
        tokenizer: Tokenizer | None,  # noqa: ARG002 - most answers are complete
    ) -> Arrays:
        """As :meth:`answers`, with what only the tokenizer can say (None where none is :attr:`needed <needs_tokenizer>`): what is
        served."""
        return self.answers(outputs, origins, options)

    # -- the client ------------------------------------------------------------------------------------------------------------

    def call(self, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The arguments of a call to ``transformers.pipeline`` → its inputs, and its options. Here the inputs are its one
        argument.

        Raises:
            TypeError, ValueError: there are none, or more than the pipeline takes.
        """
        options = dict(given)
        inputs = (*arguments, options.pop("inputs")) if "inputs" in options else arguments
        if len(inputs) != 1:
            raise TypeError(f"{self.name} takes its inputs as one argument, not {len(inputs)}")
        return inputs[0], options

    @abstractmethod
    def request_rows(self, inputs: Any) -> list[tuple[str, ...]]:
        """What a user hands to ``transformers.pipeline`` → one tuple of strings per row, in the order of :meth:`inputs`.

        Raises:
            TypeError, ValueError: the input is not of a form the pipeline takes; the message says which are.
        """

    def asked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of a call of the pipeline → those of the request. None leaves the choice to the server, as does silence.

        Raises:
            ValueError: the pipeline refuses them.
        """
        return {name: value for name, value in given.items() if name in self.options and value is not None}

    @abstractmethod
    def pipeline_answers(self, answers: Arrays, **options: Any) -> list[Any]:
        """Tensors of :meth:`outputs` → what ``transformers.pipeline`` gives for each row.

        Args:
            options: those the pipeline takes and :attr:`options` does not have: they only choose what is shown of an answer.
                Those of :attr:`shaping` too.

        Raises:
            TypeError: an option the pipeline does not have, or of another type.
        """

    def check_rows(self, rows: Sequence[tuple[str, ...]]) -> None:  # noqa: B027 - most refuse none
        """Refuse rows that the pipeline refuses, though the ensemble answers them.

        Raises:
            ValueError: one is such.
        """

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

    def completed(self, answers: list[Any], rows: Sequence[tuple[str, ...]]) -> list[Any]:  # noqa: ARG002 - most are complete
        """What :meth:`pipeline_answers` gave, with what of it only the request knows.

        Args:
            rows: of the request, as :meth:`request_rows` gave them.
        """
        return answers

    def pipeline_result(self, inputs: Any, answers: list[Any], options: Mapping[str, Any]) -> Any:  # noqa: ARG002 - tasks differ
        """One answer per row → what ``transformers.pipeline`` returns for ``inputs`` as a whole: a list for a list."""
        return answers if isinstance(inputs, list | tuple) else answers[0]

    # -- training and judging --------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def metric(self) -> str:
        """Local metric module under ``export/metrics``."""

    @property
    @abstractmethod
    def main_metric(self) -> str:
        """The figure of that metric that gates and best-epoch selection look at; higher is better, 1 is best."""

    @abstractmethod
    def head(self) -> dict[str, Any]:
        """What ``from_pretrained`` must be told about the head to train: ``num_labels``, ``id2label``, ``problem_type`` …"""

    @abstractmethod
    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:
        """What the model is trained towards, by the name its ``forward`` has for it, one per model row: a value, or a list as long
        as the row's tokens.

        Args:
            features: of the training rows, in order.
            references: of the same rows.
        """

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

    @abstractmethod
    def predictions(self, answers: Arrays) -> list[Any]:
        """Tensors of :meth:`outputs` → what the metric takes, one per labelled row, as :meth:`reference` gives them."""

    def figures(
        self,
        outputs: Arrays,  # noqa: ARG002 - most metrics say enough
        original: Arrays,  # noqa: ARG002
        origins: Origins,  # noqa: ARG002
        references: Sequence[Any],  # noqa: ARG002
    ) -> dict[str, float]:
        """Figures by name that take more than the answers: of the model's outputs, against the original's and the references."""
        return {}

    @abstractmethod
    def agreement(self, answers: Arrays, original: Arrays) -> npt.NDArray[np.float64]:
        """How far a variant's answers are the original's: ``[labelled rows]``, 1 where they are the same, 0 where they are not."""

    @abstractmethod
    def ties(self, original: Arrays) -> npt.NDArray[np.bool_]:
        """``[labelled rows]``: answers of the original that are so close a call that either side of it is right."""
