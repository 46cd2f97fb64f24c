"""Models that generate the answers to several prompts in one call, as a static batch: the originals, and peers.

Each imports its own library when it loads, and nothing else: load time and memory are measured.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.backends import TORCH_PRECISIONS, weights_file
from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.generation.prompts import Prompts
from benchmarks.token_speed import TokenTimes
from export.tasks import task_of_bundle
from serving.bundle import Bundle

CT2_MODEL = "model.bin"


class TextGenerator(Protocol):
    """What a worker generates with.

    Attributes:
        file: The file that was loaded; its checksum tells which variant ran.
        threads: Threads of one operator.
    """

    file: Path
    threads: int

    def precision(self) -> str:
        """Name the precision that the model computes in; empty if only the bundle's manifest tells it."""
        ...

    def answer(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of the answer to each prompt."""
        ...

    def measure(self, prompts: Sequence[str], in_flight: int, seconds: float) -> TokenTimes:
        """Answer prompts, again and again, until the time is over; ``in_flight`` of them at a time."""
        ...


@dataclass
class Written:
    """The answers of one batch, and when their tokens came.

    Attributes:
        stamps: When the tokens of each answer came, ns.
    """

    tokens: list[list[int]]
    stamps: list[list[int]]


class _StaticBatches(ABC):
    """A model that answers a batch of prompts together: the next batch begins when the longest answer has ended."""

    file: Path
    threads: int

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Prepare tokenization."""
        self.new_tokens, self.prompts = job.new_tokens, Prompts(bundle, job.engine.capacity, job.options)

    @abstractmethod
    def _write(self, prompts: list[list[int]]) -> Written:
        """Generate the answers to the tokens of some prompts."""

    @abstractmethod
    def precision(self) -> str:
        """Name the precision that the model computes in."""

    def answer(self, prompts: Sequence[str]) -> list[list[int]]:
        """Answer prompts one by one: the batch that a row is in changes the order of sums."""
        return [self._write([self.prompts.tokens(prompt)]).tokens[0] for prompt in prompts]

    def measure(self, prompts: Sequence[str], in_flight: int, seconds: float) -> TokenTimes:
        """Answer batches of ``in_flight`` prompts until the time is over."""
        stream = itertools.cycle(prompts)
        rows: list[list[int]] = []
        deadline = time.perf_counter_ns() + round(seconds * 1e9)
        while not rows or rows[-1][-1] < deadline:
            batch = list(itertools.islice(stream, in_flight))
            sent = time.perf_counter_ns()
            written = self._write([self.prompts.tokens(prompt) for prompt in batch])
            for tokens in written.tokens:
                self.prompts.decode(tokens)
            rows += [[sent, *stamps] for stamps in written.stamps]
        return np.array(rows, dtype=np.int64)


class PyTorchGenerate(_StaticBatches):
    """The original: ``transformers.generate`` with the checkpoint's own options but those of the job."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the checkpoint of ``job``."""
        import torch
        from transformers.generation.streamers import BaseStreamer

        super().__init__(job, bundle)
        self._torch = torch
        self._model = self._loaded(job, bundle)
        self._model.generation_config.eos_token_id = None  # every answer has as many tokens
        self._padding = self._model.config.pad_token_id or 0
        self.file = self._file(job)
        self.threads = torch.get_num_threads()

        class Clock(BaseStreamer):  # type: ignore[misc]
            """Notes when each token comes; the first call has the prompt."""

            def __init__(self) -> None:
                self.stamps: list[int] = []

            def put(self, _value: Any) -> None:
                self.stamps.append(time.perf_counter_ns())

            def end(self) -> None:
                pass

        self._clock = Clock

    def _file(self, job: GenerationJob) -> Path:
        return weights_file(job.source)

    def _loaded(self, job: GenerationJob, bundle: Bundle) -> Any:
        import transformers

        auto = getattr(transformers, task_of_bundle(bundle).auto_model)
        return auto.from_pretrained(job.source, dtype=self._torch.float32, use_safetensors=True, trust_remote_code=False).eval()

    def _write(self, prompts: list[list[int]]) -> Written:
        torch, clock, longest = self._torch, self._clock(), max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._padding)
        mask = torch.zeros((len(prompts), longest), dtype=torch.int64)
        for row, tokens in enumerate(prompts):
            ids[row, longest - len(tokens) :] = torch.tensor(tokens)
            mask[row, longest - len(tokens) :] = 1
        options = {"max_new_tokens": self.new_tokens, "do_sample": False, "num_beams": 1, "pad_token_id": self._padding}
        with torch.inference_mode():
            found = self._model.generate(ids, attention_mask=mask, streamer=clock, **options)
        return Written(found[:, longest:].tolist(), [clock.stamps[1:]] * len(prompts))

    def precision(self) -> str:
        """Name the precision of the weights."""
        return TORCH_PRECISIONS[str(self._model.dtype)]


class OptimumGenerate(PyTorchGenerate):
    """The graph as Optimum exports it, run by Optimum's ``ORTModelForCausalLM``."""

    def _file(self, job: GenerationJob) -> Path:
        return job.source / "model.onnx"

    def _loaded(self, job: GenerationJob, bundle: Bundle) -> Any:  # noqa: ARG002 - the folder has everything
        from optimum.onnxruntime import ORTModelForCausalLM

        return ORTModelForCausalLM.from_pretrained(job.source, use_io_binding=False)

    def precision(self) -> str:
        """Name the precision that was exported."""
        return "fp32"


class CTranslate2Generate(_StaticBatches):
    """A peer: the checkpoint as CTranslate2 converts it. It is measured where it is installed."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the model that :func:`convert_for_ctranslate2` wrote."""
        import ctranslate2

        from serving.machine import cores

        super().__init__(job, bundle)
        self.file, self.threads = job.source / CT2_MODEL, cores()
        kind = {"fp32": "float32", "int8": "int8"}[job.precision]
        self._model = ctranslate2.Generator(str(job.source), compute_type=kind, intra_threads=self.threads, inter_threads=1)
        self._vocabulary = self.prompts.tokenizer.id_to_token
        self._precision = {"float32": "fp32", "int8": "int8", "int8_float32": "int8"}[self._model.compute_type]

    def _write(self, prompts: list[list[int]]) -> Written:
        stamps: list[list[int]] = [[] for _ in prompts]

        def on_token(step: Any) -> bool:
            stamps[step.batch_id].append(time.perf_counter_ns())
            return False

        found = self._model.generate_batch(
            [[self._vocabulary(token) for token in tokens] for tokens in prompts],
            max_length=self.new_tokens,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
            callback=on_token,
        )
        return Written([one.sequences_ids[0] for one in found], stamps)

    def precision(self) -> str:
        """Name the precision that the library computes in, as it reports it."""
        return self._precision
