"""Records the tokens that a model which generates must give to its example, computed in this process from the package itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import JsonValue

from serving.answer_comparison import TOLERANCES
from serving.bundle import Bundle
from serving.manifests import ExpectedAnswer, ExpectedTensor, ProbeBody, ProbeInput
from serving.plan import Plan
from serving.runtime.generation.prompt_reader import PromptReader
from serving.runtime.generation.sampling import Sampling
from serving.runtime.generation.step_graph import DecoderGraph, PromptChunk
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.types import Floats

TOKENS = 8
"""Most tokens of the recorded answer. A server is asked for it again and again, so it is short."""
GREEDY: dict[str, bool | int] = {"do_sample": False, "num_beams": 1}


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
    task = bundle.generation_task.with_options({**GREEDY, "max_new_tokens": TOKENS})
    assert isinstance(task, TextGeneration)
    text = task.example["text_input"]
    reader = PromptReader(version, task, capacity=TOKENS * len(text), split_special_tokens=bundle.manifest.split_special_tokens)
    prompt = reader.read(text.encode(), task).tokens
    capacity = len(prompt) + TOKENS
    graph = DecoderGraph(version / "model.onnx", slots=1, capacity=capacity, threads=plan.threads)
    decoding = Sampling(task.generation_options, prompt, max_length=capacity, on_token=lambda _sequence, _token: False)
    logits, length = graph.prefill(0, [PromptChunk(prompt)]), len(prompt)
    decided = 0
    while _is_decided(logits, TOLERANCES[plan.precision]):
        decided += 1
        following = decoding.advance(logits, logits.argmax(axis=-1))
        if following is None:
            break
        logits = graph.step(following.tokens, np.array([length]))
        length += 1
    if not decided:
        return ()
    tokens = list(decoding.sequences()[0].token_ids)
    expected = ExpectedTensor(name="token_ids", datatype="INT64", shape=(len(tokens),), data=tuple(tokens))
    return (ExpectedAnswer(request=generation_probe(task, tokens=len(tokens)), outputs=(expected,)),)


def generation_probe(task: TextGeneration, *, tokens: int) -> ProbeBody:
    """Return a request for the first tokens of the answer to the task's example."""
    inputs = tuple(ProbeInput(name=name, datatype="BYTES", shape=(1,), data=(text,)) for name, text in task.example.items())
    parameters: dict[str, JsonValue] = {**GREEDY, "max_new_tokens": tokens, "exclude_input_in_output": True}
    return ProbeBody(inputs=inputs, parameters=parameters, endpoint="generate")


def _is_decided(logits: Floats, tolerance: float) -> bool:
    """Return whether the largest logit of FP32 ``[1, vocab]`` is so much larger than the next one that rounding cannot matter."""
    second, first = np.partition(logits[0], -2)[-2:].tolist()
    return bool(first - second > tolerance * max(1.0, abs(first)))
