"""From the texts of requests to the inputs of the model: the work of the first step, without Triton."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .digest import REQUEST_DIGEST, mark_truncated
from .metadata import METADATA, pack
from .tasks import load_encoder, parameter_reader
from .tasks._encoder import EncoderTask
from .tokenization import PADDING, TextEncoder
from .types import Arrays, Features, Integers, TextColumns

MOST_CHARACTERS = 2**17
"""Longest text that is tokenized where it cannot be cut, or as much of it as may be read to see what the model gets.

The tokens of 131,072 characters fill a model of 8,192 tokens at 16 characters for each. Tokenizing them took 0.15 s on one core at
most, of 22 kinds of text tried with five tokenizers; all requests wait that long."""


@dataclass(frozen=True)
class PreparedRows:
    """The model rows of one or more requests.

    Attributes:
        features: Their tokens and origins.
        digests: INT64 ``[model rows]``, the digest of the request row of each model row, marked if that row was truncated.
    """

    features: Features
    digests: Integers


class Preparation:
    """Decodes and tokenizes the rows of requests for one checkpoint.

    Attributes:
        task: The task with its settings.
        with_parameters: Applies the parameters of a request, given as JSON or empty, to the task. Raises ValueError.
        input_names: The input tensors of the ensemble.
    """

    def __init__(self, folder: Path) -> None:
        """Load the task and its tokenizer from the version folder of a step."""
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        if not settings["parallel"]:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        self.task = load_encoder(settings["task"], settings["settings"])
        self.task.check_options()
        self.with_parameters = parameter_reader(self.task)
        self.input_names = [tensor.name for tensor in self.task.inputs()]
        self._max_model_rows = settings["max_model_rows"]
        self._encoder = TextEncoder(
            str(folder / "tokenizer.json"),
            max_length=settings["max_length"],
            names=settings["model_inputs"],
            padding=PADDING,
            most_rows=self._max_model_rows,
            most_characters=MOST_CHARACTERS,
            split_special_tokens=settings["split_special_tokens"],
        )

    def prepare(self, task: EncoderTask, columns: TextColumns, digests: Integers) -> PreparedRows:
        """Tokenize rows.

        Args:
            task: The task with the parameters of the requests.
            columns: The rows, by input tensor.
            digests: INT64 ``[request rows]``. They are marked in place where a row is truncated.

        Raises:
            ValueError: A row cannot be used. The message is for the client.
        """
        features = task.preprocess(columns, self._encoder)
        return PreparedRows(features, mark_truncated(digests, features.truncated_rows)[features.origins.sample_mapping])

    def model_inputs(self, prepared: PreparedRows, rows: slice) -> Arrays:
        """Return the model's inputs for the model rows of one request.

        Args:
            prepared: Rows of one or more requests.
            rows: Positions of this request's model rows.

        Raises:
            ValueError: The request makes more rows than the model takes. The message is for the client.
        """
        encodings = prepared.features.encodings[rows]
        if len(encodings) > self._max_model_rows:
            raise ValueError(
                f"this request makes {len(encodings)} rows for the model, which takes {self._max_model_rows} at most: "
                "send fewer rows at once, or shorter ones"
            )
        return self._encoder.arrays(encodings) | {REQUEST_DIGEST: prepared.digests[rows][:, None]}

    def metadata(self, prepared: PreparedRows, rows: slice, start: int) -> Arrays:
        """Return the tensor that passes around the model, if the task has one.

        Args:
            prepared: Rows of one or more requests.
            rows: Positions of this request's model rows.
            start: Position of the request's first row.
        """
        if not self.task.carries_metadata:
            return {}
        origins = prepared.features.origins
        return {METADATA: pack(origins.sample_mapping[rows] - start, prepared.digests[rows], origins.metadata[rows])}


def decoded(raw: Mapping[str, Sequence[bytes]]) -> list[Sequence[str]]:
    """Decode the elements of BYTES tensors.

    Args:
        raw: The elements, by tensor.

    Raises:
        ValueError: A row is not UTF-8.
    """
    return [_strings(column, name) for name, column in raw.items()]


def _strings(rows: Sequence[bytes], name: str) -> Sequence[str]:
    strings: list[str] = []
    try:
        for row in rows:
            strings.append(row.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, row {len(strings)}: byte {error.start} is not valid UTF-8") from None
    return strings
