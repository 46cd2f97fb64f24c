"""Tiny random checkpoints with any head, and the answers of their exported graphs without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from export import convert, graph
from export.tasks._encoder import ExportedEncoderTask
from serving.runtime.tokenization import TextEncoder
from tests.helpers.checkpoints import TOKENIZERS, make_config, make_tokenizer, randomize

MAX_LENGTH = 64
TYPED = ("bert", "albert", "electra", "deberta-v2")
"""Architectures that are told which of two texts a token is of."""


def random_checkpoint(folder: Path, architecture: str, task: type[ExportedEncoderTask], **config: Any) -> Path:
    """A checkpoint of ``task`` in ``folder``, which takes :data:`MAX_LENGTH` tokens."""
    tokenizer = make_tokenizer(TOKENIZERS[architecture])
    settings = make_config(architecture, tokenizer)
    for name, value in config.items():
        setattr(settings, name, value)
    model = getattr(transformers, task.auto_model).from_config(settings)
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if architecture not in TYPED:
        file = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "attention_mask"]}
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | names), encoding="utf-8")
    return folder


class Exported:
    """The fp32 graph of a checkpoint with the task's own steps around it, as Triton runs them."""

    def __init__(self, checkpoint: Path, task: ExportedEncoderTask, work: Path) -> None:
        work.mkdir(parents=True)
        path = convert.convert(checkpoint, type(task), work, opset=18)
        self.inputs = graph.input_names(path)
        self.task, self.served = task, task.served
        self._run = graph.runner(graph.session(path, threads=1), task.model_outputs)
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self._encoder = TextEncoder(
            tokenizer.backend_tokenizer,
            max_length=MAX_LENGTH,
            names=self.inputs,
            padding={"input_ids": tokenizer.pad_token_id},
        )

    def answers(self, rows: Sequence[tuple[str, ...]], **options: Any) -> list[Any]:
        """What ``TritonPipeline`` gives for rows as :meth:`EncoderTask.parse_inputs` has them."""
        task = self.served.with_options(options)
        features = task.preprocess(list(zip(*rows, strict=True)), self._encoder)
        outputs = self._run(self._encoder.arrays(features.encodings))
        answers = task.postprocess(outputs, features.origins)
        return list(task.add_inputs(task.format_answers(answers), rows))
