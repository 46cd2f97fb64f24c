"""Beam search of a decoder in the engine, beside rows that are decoded greedily."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from export.generation.decoder_graph import export_decoder
from serving.runtime.generation.beam_search import BeamSearch
from serving.runtime.generation.engine import Engine
from serving.runtime.generation.engine_request import GenerationRequest
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.sampling import Sampling
from serving.runtime.generation.step_graph import DecoderGraph
from tests.helpers.decoders import VOCABULARY, make_decoder

PADDING = VOCABULARY - 1
PROMPTS = [[5, 9, 17, 4], [8], list(range(40, 63)), [30, 31], [77, 12, 5], [9, 9, 9, 9, 9, 9]]
OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 4, "eos_token_id": list(range(100, 160)), "num_return_sequences": 2},
    {},
    {"num_beams": 3, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "early_stopping": True, "eos_token_id": list(range(100, 200)), "min_new_tokens": 4},
    {"repetition_penalty": 1.4},
    {"num_beams": 4, "repetition_penalty": 1.4, "length_penalty": 2.0, "eos_token_id": [*range(20, 60)]},
]


def generate(model: Any, prompt: list[int], given: dict[str, Any]) -> list[list[int]]:
    import torch

    own = {"num_beams": 1, "eos_token_id": None} | given
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=PADDING, **own)
    return [[token for token in sequence[len(prompt) :].tolist() if token != PADDING] for sequence in found]


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    model = make_decoder("llama")
    export_decoder(model, tmp_path / "model.onnx")
    graph = DecoderGraph(tmp_path / "model.onnx", slots=10, capacity=64, threads=1)
    failed: list[BaseException] = []
    engine = Engine(graph, chunk=8, max_waiting=16, on_failure=failed.append)
    decodings, ended, wanted = [], [], []
    for prompt, given in zip(PROMPTS, OPTIONS, strict=True):
        asked = {"max_new_tokens": 24, "bad_words_ids": [[PADDING]]} | given
        options = GenerationOptions.from_settings(asked, vocab_size=VOCABULARY)
        ids, done = np.array(prompt), threading.Event()
        limit = options.max_total_length(len(prompt), capacity=64)
        decoding = (BeamSearch if options.num_beams > 1 else Sampling)(options, ids, max_length=limit)
        engine.submit(GenerationRequest(ids, decoding, lambda _why, done=done: done.set()))
        decodings.append(decoding)
        ended.append(done)
        wanted.append(generate(model, prompt, asked))
    engine.start()
    try:
        assert all(done.wait(60) for done in ended)
    finally:
        engine.close()
    assert not failed
    assert [[list(sequence.token_ids) for sequence in decoding.sequences()] for decoding in decodings] == wanted
    assert len({token for answer in wanted for sequence in answer for token in sequence}) >= 40
