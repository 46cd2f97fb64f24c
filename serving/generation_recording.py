"""Records the tokens that a model which generates must give to its example, computed in this process from the package itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from serving.answer_comparison import TOLERANCES
from serving.bundle import Bundle
from serving.manifests import ExpectedAnswer, ExpectedTensor, ProbeBody, ProbeInput
from serving.plan import Plan
from serving.runtime.generation.encoder_decoder_step import EncoderDecoderGraph
from serving.runtime.generation.prompt_reader import PromptReader
from serving.runtime.generation.sampling import Sampling
from serving.runtime.generation.source_reader import SourceReader
from serving.runtime.generation.step_graph import DecoderGraph, PromptChunk, StepGraph
from serving.runtime.tasks._generation import GenerationTask
from serving.runtime.tasks._text2text import Text2TextTask
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.types import Floats, Integers

TOKENS = 8
"""Most tokens of the recorded answer. A server is asked for it again and again, so it is short."""
GREEDY: dict[str, bool | int] = {"do_sample": False, "num_beams": 1}
NEUTRAL: dict[str, int | float | str] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": "[]",
    "suppress_tokens": "[]",
    "begin_suppress_tokens": "[]",
    "forced_eos_token_id": "[]",
    "stop_strings": "[]",
    "max_time": "null",
    "num_return_sequences": 1,
}
"""Values with which an option changes no logit and ends nothing early, so that the logits alone decide."""


@dataclass(frozen=True, kw_only=True)
class _Example:
    """The example of a task, ready to be generated.

    Attributes:
        prompt: INT64 ``[length]``, what the decoder begins with.
        source: INT64 ``[length]``, what the encoder reads, if there is one.
        graph: A graph with a cache for one sequence.
    """

    prompt: Integers
    source: Integers | None
    graph: StepGraph


def record_generation(version: Path, bundle: Bundle, plan: Plan) -> tuple[ExpectedAnswer, ...]:
    """Compute the beginning of the answer to the task's example, without sampling.

    It ends before the first token that other processors might choose differently, because two logits are almost equal.

    Args:
        version: Folder of the packaged model, which is complete.
        bundle: The bundle.
        plan: How it is served.

    Returns:
        The answer; none if its first token is almost undecided.
    """
    own = bundle.generation_task
    task = own.with_options({**_plain(own), "max_new_tokens": TOKENS, "truncation": True})
    if isinstance(task, TextGeneration):
        tokens = _decided_tokens(_decoder_example(version, task, bundle, plan), task, TOLERANCES[plan.precision])
        expected = ExpectedTensor(name="token_ids", datatype="INT64", shape=(len(tokens),), data=tuple(tokens))
    else:
        assert isinstance(task, Text2TextTask)
        reader = SourceReader(version, max_length=bundle.max_length, split_special_tokens=bundle.manifest.split_special_tokens)
        tokens = _decided_tokens(_encoder_decoder_example(version, task, reader, plan), task, TOLERANCES[plan.precision])
        text = reader.tokenizer.decode(tokens, skip_special_tokens=True)
        expected = ExpectedTensor(name="GENERATED", datatype="BYTES", shape=(1, 1), data=(text,))
    return (ExpectedAnswer(request=generation_probe(task, tokens=len(tokens)), outputs=(expected,)),) if tokens else ()


def generation_probe(task: GenerationTask, *, tokens: int) -> ProbeBody:
    """Return a request for the first tokens of the answer to the task's example."""
    shape, text = ((1,) if task.streams else (1, 1)), task.example.items()
    inputs = tuple(ProbeInput(name=name, datatype="BYTES", shape=shape, data=(value,)) for name, value in text)
    parameters: dict[str, JsonValue] = {**_plain(task), "max_new_tokens": tokens, "truncation": True}
    if task.streams:
        return ProbeBody(inputs=inputs, parameters=parameters | {"exclude_input_in_output": True}, endpoint="generate")
    return ProbeBody(inputs=inputs, parameters=parameters)


def _plain(task: GenerationTask) -> dict[str, bool | int | float | str]:
    """Return options without sampling, and without what the checkpoint's defaults do to the logits."""
    return {**GREEDY, **{name: value for name, value in NEUTRAL.items() if name in task.generation}}


def _decoder_example(version: Path, task: TextGeneration, bundle: Bundle, plan: Plan) -> _Example:
    text = task.example["text_input"]
    reader = PromptReader(version, task, capacity=TOKENS * len(text), split_special_tokens=bundle.manifest.split_special_tokens)
    prompt = reader.read(text.encode(), task).tokens
    graph = DecoderGraph(version / "model.onnx", slots=1, capacity=len(prompt) + TOKENS, threads=plan.threads)
    return _Example(prompt=prompt, source=None, graph=graph)


def _encoder_decoder_example(version: Path, task: Text2TextTask, reader: SourceReader, plan: Plan) -> _Example:
    (source,) = reader.read([task.example["TEXT"]], task).tokens
    graph = EncoderDecoderGraph(
        version / "encoder.onnx",
        version / "decoder.onnx",
        slots=1,
        capacity=1 + TOKENS,
        source_capacity=len(source),
        threads=plan.threads,
    )
    return _Example(prompt=np.array([task.decoder_start_token_id], dtype=np.int64), source=source, graph=graph)


def _decided_tokens(example: _Example, task: GenerationTask, tolerance: float) -> list[int]:
    """Generate the first tokens of the answer, as long as each is decided."""
    prompt, graph = example.prompt, example.graph
    decoding = Sampling(task.generation_options, prompt, max_length=graph.capacity, encoder_ids=example.source)
    logits, length = graph.prefill(0, [PromptChunk(prompt, source=example.source)]), len(prompt)
    while _is_decided(logits, tolerance):
        following = decoding.advance(logits, logits.argmax(axis=-1) if decoding.takes_argmax else None)
        if following is None:
            break
        logits = graph.step(following.tokens, np.array([length]))
        length += 1
    return list(decoding.sequences()[0].token_ids)


def _is_decided(logits: Floats, tolerance: float) -> bool:
    """Return whether the largest logit of FP32 ``[1, vocab]`` is so much larger than the next one that rounding cannot matter."""
    second, first = np.partition(logits[0], -2)[-2:].tolist()
    return bool(first - second > tolerance * max(1.0, abs(first)))
