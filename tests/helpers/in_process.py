"""The client without a server: the steps of a served task and the PyTorch model stand in for it, in this process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from export.checkpoint import read_settings
from export.original import original_run
from export.tasks._encoder import ExportedEncoderTask
from serving.client import TritonPipeline
from serving.connection import Connection
from serving.errors import InvalidArgumentError
from serving.runtime.digest import TRUNCATED
from serving.runtime.tasks import parameter_reader
from serving.runtime.tokenization import TextEncoder


class InProcess(Connection):
    """Answers requests as an ensemble of one checkpoint does.

    Attributes:
        asked: The parameters of each request.
    """

    def __init__(self, checkpoint: Path, task: type[ExportedEncoderTask], *, pair: bool = False, **settings: Any) -> None:
        import transformers

        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self._task = (
            task.from_config(config, pair=pair).with_settings(read_settings(checkpoint, task, settings)).with_tokenizer(tokenizer)
        )
        model = getattr(transformers, task.auto_model).from_pretrained(checkpoint)
        self._run = original_run(model, self._task, device="cpu")
        self._tokenizer = tokenizer.backend_tokenizer
        self._encoder = TextEncoder(
            str(checkpoint / "tokenizer.json"),
            max_length=min(tokenizer.model_max_length, 512),
            names=tokenizer.model_input_names,
            padding={"input_ids": tokenizer.pad_token_id},
            most_rows=256,
        )
        self._with_parameters = parameter_reader(self._task.served)
        self.asked: list[Mapping[str, object]] = []

    async def model_config(self, model: str) -> dict[str, Any]:  # noqa: ARG002
        description = json.dumps({"config": {}, "tokenizer": {"model_max_length": self._encoder.max_length}, "device": "cpu"})
        parameters = {
            "task": self._task.name,
            "settings": json.dumps(self._task.served.to_settings()),
            "description": description,
        }
        return {"max_batch_size": 64, "parameters": {name: {"string_value": value} for name, value in parameters.items()}}

    async def infer(self, model: str, inputs: Mapping[str, Sequence[bytes]], parameters: Mapping[str, object], **_: object) -> Any:  # noqa: ARG002
        self.asked.append(parameters)
        try:
            task = self._with_parameters(json.dumps(parameters) if parameters else "")
            features = task.preprocess([[row.decode() for row in rows] for rows in inputs.values()], self._encoder)
        except ValueError as error:
            raise InvalidArgumentError(str(error)).of_request("in process") from error
        outputs = self._run(self._encoder.arrays(features.encodings))
        if task.needs_tokenizer:
            found = task.decoded_postprocess(outputs, features.origins, self._tokenizer)
        else:
            found = task.postprocess(outputs, features.origins)
        found[TRUNCATED] = np.isin(np.arange(features.origins.count), features.truncated_rows)[:, None]
        return SimpleNamespace(get_output=found.get, as_numpy=found.__getitem__)

    async def close(self) -> None:
        pass


@contextlib.contextmanager
def in_process(
    checkpoint: Path,
    task: type[ExportedEncoderTask],
    *,
    pair: bool = False,
    defaults: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[TritonPipeline]:
    """A client, made with the options ``defaults``, of a checkpoint that is served with ``settings``."""
    with TritonPipeline("tiny", **(defaults or {})) as pipe:
        pipe._pipeline._connection = InProcess(checkpoint, task, pair=pair, **settings)
        yield pipe
