"""Models that continue several prompts in one call, as a static batch: the originals, and peers.

Each imports its own library when it loads, and nothing else: load time and memory are measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.backends import TORCH_PRECISIONS, weights_file
from benchmarks.generation.ctranslate2_options import generator_options
from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.generation.library_models import (
    CT2_TYPES,
    ctranslate2_model,
    ctranslate2_precision,
    ctranslate2_threads,
    load_exported,
    load_original,
)
from benchmarks.generation.prompts import Prompts
from benchmarks.generation.static_batches import StaticBatches, Written
from serving.bundle import Bundle


class _StaticPrompts(StaticBatches):
    """A model that continues prompts."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Prepare tokenization."""
        self.new_tokens = job.new_tokens
        self.texts: Prompts = Prompts(bundle, job.engine.capacity, job.options.timed)

    def answer(self, prompts: Sequence[str]) -> list[list[int]]:
        """Answer prompts one by one: the batch that a row is in changes the order of sums."""
        return [self._write([self.texts.tokens(prompt)]).tokens[0] for prompt in prompts]


class PyTorchGenerate(_StaticPrompts):
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
        return load_original(job, bundle)

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

        return load_exported(ORTModelForCausalLM, job.source)

    def precision(self) -> str:
        """Name the precision that was exported."""
        return "fp32"


class CTranslate2Generate(_StaticPrompts):
    """A peer: the checkpoint as CTranslate2 converts it. It is measured where it is installed."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the model that :func:`convert_for_ctranslate2` wrote."""
        import ctranslate2

        super().__init__(job, bundle)
        self.file, self.threads, kind = ctranslate2_model(job), ctranslate2_threads(), CT2_TYPES[job.precision]
        self._model = ctranslate2.Generator(str(job.source), compute_type=kind, intra_threads=self.threads, inter_threads=1)
        self._word = self.texts.tokenizer.id_to_token
        self._options = generator_options(self.texts.task.generation_options, self._word)

    def _write(self, prompts: list[list[int]]) -> Written:
        stamps: list[list[int]] = [[] for _ in prompts]

        def on_token(step: Any) -> bool:
            stamps[step.batch_id].append(time.perf_counter_ns())
            return False

        found = self._model.generate_batch(
            [[self._word(token) for token in tokens] for tokens in prompts],
            max_length=self.new_tokens,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
            callback=on_token,
            **self._options,
        )
        return Written([one.sequences_ids[0] for one in found], stamps)

    def precision(self) -> str:
        """Name the precision that the library computes in, as it reports it."""
        return ctranslate2_precision(self._model.compute_type)
