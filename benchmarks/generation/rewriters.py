"""Encoder-decoders that answer several sources in one call, as a static batch: the originals, and peers.

Each imports its own library when it loads, and nothing else: load time and memory are measured.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.backends import TORCH_PRECISIONS, weights_file
from benchmarks.generation.ctranslate2_options import translator_options
from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.generation.library_models import (
    CT2_TYPES,
    OPTIMUM_FILES,
    ctranslate2_model,
    ctranslate2_precision,
    ctranslate2_threads,
    load_exported,
    load_original,
)
from benchmarks.generation.source_texts import SourceTexts
from benchmarks.generation.static_batches import StaticBatches, Written
from benchmarks.token_speed import require_tokens
from serving.bundle import Bundle
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.tasks._text2text import Text2TextTask

OWN_FIELDS = ("seed", "include_stop_strings", "stop_in_whole_text", "limit_requested", "max_length")
"""Fields of our options that ``transformers`` does not have, or that another one replaces."""


class _StaticSources(StaticBatches):
    """An encoder-decoder. What it is asked for has the options of the served model."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Prepare tokenization."""
        self.texts: SourceTexts = SourceTexts(bundle, job.options.timed)
        self.new_tokens, self.capacity = job.new_tokens, job.engine.capacity
        self.timed: GenerationOptions = self.texts.task.generation_options
        self.compared = bundle.generation_task.with_options(job.options.compared).generation_options

    @property
    def task(self) -> Text2TextTask:
        """The served half of the task."""
        return self.texts.task

    @abstractmethod
    def _generate(self, sources: list[list[int]], options: GenerationOptions) -> list[list[int]]:
        """Generate the answers to some sources, without the token that the decoder begins with."""

    def _write(self, prompts: list[list[int]]) -> Written:
        answers = self._generate(prompts, self.timed)
        for answer in answers:
            require_tokens(len(answer), self.new_tokens)
        return Written(answers)

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """Answer sources one by one."""
        return [self.texts.decode(self._generate([self.texts.tokens(prompt)], self.compared)[0]) for prompt in prompts]


class PyTorchRewrite(_StaticSources):
    """The original: ``transformers.generate``."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the checkpoint of ``job``."""
        import torch

        super().__init__(job, bundle)
        self._torch = torch
        self._model = self._loaded(job, bundle)
        self._padding = self.task.pad_token_id or 0
        self.file = self._file(job)
        self.threads = torch.get_num_threads()

    def _file(self, job: GenerationJob) -> Path:
        return weights_file(job.source)

    def _loaded(self, job: GenerationJob, bundle: Bundle) -> Any:
        return load_original(job, bundle)

    def _generate(self, sources: list[list[int]], options: GenerationOptions) -> list[list[int]]:
        from transformers import GenerationConfig

        torch, longest, start = self._torch, max(map(len, sources)), self.task.decoder_start_token_id
        ids = torch.full((len(sources), longest), self._padding)
        mask = torch.zeros((len(sources), longest), dtype=torch.int64)
        for row, tokens in enumerate(sources):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        settings = library_settings(options, capacity=self.capacity) | {"pad_token_id": self._padding}
        with torch.inference_mode():
            found = self._model.generate(
                ids,
                attention_mask=mask,
                decoder_input_ids=torch.full((len(sources), 1), start),
                generation_config=GenerationConfig(**settings),
                use_model_defaults=False,
            )
        answers: list[list[int]] = found[:, 1:].tolist()
        return answers

    def precision(self) -> str:
        """Name the precision of the weights."""
        return TORCH_PRECISIONS[str(self._model.dtype)]


class OptimumRewrite(PyTorchRewrite):
    """The graphs as Optimum exports them, run by Optimum's ``ORTModelForSeq2SeqLM``."""

    def _file(self, job: GenerationJob) -> Path:
        return job.source / OPTIMUM_FILES["text2text-generation"]

    def _loaded(self, job: GenerationJob, bundle: Bundle) -> Any:  # noqa: ARG002 - the folder has everything
        from optimum.onnxruntime import ORTModelForSeq2SeqLM

        return load_exported(ORTModelForSeq2SeqLM, job.source)

    def precision(self) -> str:
        """Name the precision that was exported."""
        return "fp32"


class CTranslate2Rewrite(_StaticSources):
    """A peer: the checkpoint as CTranslate2 converts it. It is measured where it is installed."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the model that :func:`convert_for_ctranslate2` wrote."""
        import ctranslate2

        super().__init__(job, bundle)
        self.file, self.threads, kind = ctranslate2_model(job), ctranslate2_threads(), CT2_TYPES[job.precision]
        self._model = ctranslate2.Translator(str(job.source), compute_type=kind, intra_threads=self.threads, inter_threads=1)
        self._word, self._token = self.texts.tokenizer.id_to_token, self.texts.tokenizer.token_to_id

    def _generate(self, sources: list[list[int]], options: GenerationOptions) -> list[list[int]]:
        first = options.forced_bos_token_id
        found = self._model.translate_batch(
            [[self._word(token) for token in source] for source in sources],
            target_prefix=None if first is None else [[self._word(first)]] * len(sources),
            **translator_options(options, self._word, capacity=self.capacity),
        )
        return [[self._id(word) for word in one.hypotheses[0]] for one in found]

    def _id(self, word: str) -> int:
        """Return the token of a string; words that fill the vocabulary are unknown to the tokenizer, and are no text."""
        found: int | None = self._token(word)
        return self.task.pad_token_id or 0 if found is None else found

    def precision(self) -> str:
        """Name the precision that the library computes in, as it reports it."""
        return ctranslate2_precision(self._model.compute_type)


def library_settings(options: GenerationOptions, *, capacity: int) -> dict[str, Any]:
    """Return options of a request as those of ``transformers.GenerationConfig``.

    Args:
        options: The options.
        capacity: Most tokens of an answer with the one that the decoder begins with.
    """
    given = {name: value for name, value in asdict(options).items() if name not in OWN_FIELDS and value not in ((), None)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    if options.bad_words_ids:
        plain["bad_words_ids"] = [list(word) for word in options.bad_words_ids]
    return plain | {"max_new_tokens": options.max_total_length(1, capacity=capacity) - 1}
