"""From the outputs of the model to answers: the work of the last step, without Triton."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from .digest import DIGEST, TRUNCATED, split_truncation
from .tasks import load_encoder, parameter_reader
from .tasks._encoder import EncoderTask
from .types import Arrays, Integers, Origins


class Answering:
    """Makes the answers of one checkpoint.

    Attributes:
        task: The task with its settings.
        with_parameters: Applies the parameters of a request, given as JSON or empty, to the task. Raises ValueError.
    """

    def __init__(self, folder: Path) -> None:
        """Load the task from the version folder of a step, and the tokenizer where the task needs it."""
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.task = load_encoder(settings["task"], settings["settings"])
        self.task.check_options()
        self.with_parameters = parameter_reader(self.task)
        self._names = [tensor.name for tensor in self.task.outputs()]
        if not settings["parallel"]:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")) if self.task.needs_tokenizer else None

    def answer(self, task: EncoderTask, outputs: Arrays, origins: Origins, digests: Integers) -> Arrays:
        """Answer rows.

        Args:
            task: The task with the parameters of the requests.
            outputs: The model's outputs by name, ``[model rows, …]``.
            origins: Where the model rows come from.
            digests: INT64 ``[request rows]``, as they come from the model.

        Returns:
            The output tensors of the ensemble, ``[request rows, …]``.
        """
        if self._tokenizer is None:
            found = task.postprocess(outputs, origins)
        else:
            found = task.decoded_postprocess(outputs, origins, self._tokenizer)
        own, truncated = split_truncation(digests)
        return {name: found[name] for name in self._names} | {TRUNCATED: truncated[:, None], DIGEST: own[:, None]}


def request_digests(digests: Integers, origins: Origins) -> Integers:
    """Return the digest of each request row.

    Args:
        digests: INT64 ``[model rows]``.
        origins: Where the model rows come from.
    """
    return digests[np.searchsorted(origins.sample_mapping, np.arange(origins.count))]
