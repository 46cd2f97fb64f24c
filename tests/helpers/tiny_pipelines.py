"""Tiny checkpoints of each task, each with a client that runs in this process and the pipeline of ``transformers``."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.tasks import task_class
from serving.client import TritonPipeline
from tests.helpers.filling import masked_checkpoint
from tests.helpers.graphs import random_checkpoint
from tests.helpers.in_process import InProcess, in_process
from tests.helpers.tagging import tiny_tagger

THREE = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
NLI = {"id2label": {0: "contradiction", 1: "entailment"}, "label2id": {"contradiction": 0, "entailment": 1}}
CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "text-classification": lambda folder: random_checkpoint(folder, "bert", task_class("text-classification"), **THREE),
    "fill-mask": lambda folder: masked_checkpoint(folder, "bert"),
    "question-answering": lambda folder: random_checkpoint(folder, "bert", task_class("question-answering")),
    "zero-shot-classification": lambda folder: random_checkpoint(folder, "bert", task_class("zero-shot-classification"), **NLI),
    "token-classification": lambda folder: tiny_tagger(folder, "bert"),
    "feature-extraction": lambda folder: random_checkpoint(folder, "bert", task_class("feature-extraction")),
}


@dataclass
class TinyPipelines:
    """Makes checkpoints, clients and pipelines once."""

    folder: Path
    stack: ExitStack
    known: dict[tuple[str, bool], tuple[TritonPipeline, Any]] = field(default_factory=dict)

    def both(self, task: str, *, pair: bool = False) -> tuple[TritonPipeline, Any]:
        """A client and the pipeline of the task's tiny checkpoint."""
        if (task, pair) not in self.known:
            checkpoint = self.checkpoint(task)
            client = self.client(checkpoint, task, **({"pair": True} if pair else {}))
            self.known[task, pair] = client, self.pipeline(checkpoint, task)
        return self.known[task, pair]

    def connection(self, task: str) -> InProcess:
        """What answers the client of :meth:`both`."""
        found = self.both(task)[0]._pipeline._connection
        assert isinstance(found, InProcess)
        return found

    def client_of(self, task: str, **arguments: Any) -> TritonPipeline:
        """Another client of the same model."""
        client = self.stack.enter_context(TritonPipeline("tiny", **arguments))
        client._pipeline._connection = self.connection(task)
        return client

    def checkpoint(self, task: str, **config: Any) -> Path:
        folder = self.folder / f"{task}{len(config)}{'-'.join(map(str, config.values()))}"
        if not folder.exists():
            if config:
                labels = THREE if "classification" in task else {}  # a head of question answering has two outputs
                random_checkpoint(folder, "bert", task_class(task), **labels, **config)
            else:
                CHECKPOINTS[task](folder)
        return folder

    def with_number_labels(self, task: str) -> tuple[TritonPipeline, Any]:
        """A client and the pipeline of a checkpoint one of whose labels is a number."""
        checkpoint = random_checkpoint(self.folder / f"{task}-numbers", "bert", task_class(task))
        file = checkpoint / "config.json"
        labels = {"id2label": {"0": 7, "1": "7b"}, "label2id": {"7": 0, "7b": 1}}
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | labels), encoding="utf-8")
        return self.client(checkpoint, task), self.pipeline(checkpoint, task)

    def client(self, checkpoint: Path, task: str, **settings: Any) -> TritonPipeline:
        return self.stack.enter_context(in_process(checkpoint, task_class(task), **settings))

    def pipeline(self, checkpoint: Path, task: str, **options: Any) -> Any:
        import transformers

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transformers.pipeline(task, model=str(checkpoint), device="cpu", **options)
