"""Encoder-decoders in the engine: whatever else runs, each source gets the tokens that transformers generates for it alone."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.generation.encoder_decoder_graph import export_encoder_decoder
from serving.runtime.generation.beam_search import BeamSearch
from serving.runtime.generation.encoder_decoder_step import ENCODER_STEP, WIDTH_STEP, EncoderDecoderGraph
from serving.runtime.generation.engine import Engine
from serving.runtime.generation.engine_request import GenerationRequest
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.sampling import Sampling
from serving.runtime.generation.shared_prefixes import SharedPrefixes
from serving.runtime.generation.step_graph import PromptChunk
from tests.helpers.encoder_decoders import CONFIGURATIONS, SOURCES, VOCABULARY, tiny_encoder_decoder

PADDING = VOCABULARY - 1
CAPACITY = 64
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_beams": 4, "eos_token_id": list(range(20, 60))},
    {"repetition_penalty": 5.0, "max_new_tokens": 44},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "num_return_sequences": 2},
    {"eos_token_id": list(range(20, 60)), "min_new_tokens": 5},
    {"num_beams": 3, "early_stopping": True, "eos_token_id": list(range(20, 80)), "length_penalty": 2.0},
    {"forced_bos_token_id": 17, "forced_eos_token_id": 2},
    {"num_beams": 2, "encoder_no_repeat_ngram_size": 1, "repetition_penalty": 1.3},
]


def answers(graph: EncoderDecoderGraph, start: Sequence[int], requests: Sequence[tuple[list[int], dict[str, Any]]]) -> Any:
    """Give all requests to an engine at once, and return the generated tokens of each."""
    failed: list[BaseException] = []
    engine = Engine(graph, chunk=64, max_waiting=64, on_failure=failed.append)
    ended, decodings = [], []
    for source, given in requests:
        options = GenerationOptions.from_settings(given, vocab_size=VOCABULARY)
        prompt, encoder_ids, done = np.array(start), np.array(source), threading.Event()
        how = BeamSearch if options.num_beams > 1 else Sampling
        limit = options.max_total_length(len(prompt), capacity=CAPACITY)
        decoding = how(options, prompt, max_length=limit, encoder_ids=encoder_ids)
        engine.submit(GenerationRequest(prompt, decoding, lambda _why, done=done: done.set(), source=encoder_ids))
        ended.append(done)
        decodings.append(decoding)
    engine.start()
    try:
        assert all(done.wait(60) for done in ended)
    finally:
        engine.close()
    assert not failed
    return [[list(sequence.token_ids) for sequence in decoding.sequences()] for decoding in decodings]


def opened(folder: Path, slots: int = 12, sources: int = 200) -> EncoderDecoderGraph:
    files = folder / "encoder.onnx", folder / "decoder.onnx"
    return EncoderDecoderGraph(*files, slots=slots, capacity=CAPACITY, source_capacity=sources, threads=1)


def generate(model: Any, source: list[int], start: list[int], given: dict[str, Any]) -> list[list[int]]:
    import torch

    own = {"forced_bos_token_id": None, "forced_eos_token_id": None, "eos_token_id": None, "num_beams": 1} | given
    prompt = torch.tensor([start])
    found = model.generate(torch.tensor([source]), decoder_input_ids=prompt, do_sample=False, pad_token_id=PADDING, **own)
    return [[token for token in sequence[len(start) :].tolist() if token != PADDING] for sequence in found]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = tiny_encoder_decoder(name)
    export_encoder_decoder(model, tmp_path, opset=18)
    start = [model.config.decoder_start_token_id]
    always = {"max_new_tokens": 20, "bad_words_ids": [[PADDING]]}
    requests = [(source, always | given) for source, given in zip(SOURCES, OPTIONS, strict=False)]
    found = answers(opened(tmp_path), start, requests)
    assert found == [generate(model, source, start, given) for source, given in requests]
    assert len({token for answer in found for sequence in answer for token in sequence}) >= 40


def test_sixteen_sources_from_a_longer_prompt(tmp_path: Path) -> None:
    """Beams and single rows, sources of up to 180 tokens; the prompt names a language, as those of some models do."""
    model = tiny_encoder_decoder("t5")
    export_encoder_decoder(model, tmp_path, opset=18)
    start = [0, 33, 9]
    sources = [[*source, *(SOURCES[3] * 5 if at % 5 == 2 else [])] for at, source in enumerate(SOURCES)]
    always = {"max_new_tokens": 12, "bad_words_ids": [[PADDING]]}
    requests = [(source, always | OPTIONS[at % len(OPTIONS)]) for at, source in enumerate(sources)]
    assert answers(opened(tmp_path), start, requests) == [generate(model, source, start, given) for source, given in requests]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> EncoderDecoderGraph:
    folder = tmp_path_factory.mktemp("graphs")
    export_encoder_decoder(tiny_encoder_decoder("bart"), folder, opset=18)
    return opened(folder, slots=4, sources=127)


def chunk(source: list[int], prompt: Sequence[int] = (2,)) -> PromptChunk:
    return PromptChunk(np.array(prompt), source=np.array(source))


def test_what_a_source_is_encoded_to_does_not_depend_on_others(graph: EncoderDecoderGraph) -> None:
    """Bit for bit: neither on those of its batch, nor on the width of the memory."""
    long = SOURCES[3] * 4
    alone = {at: graph.prefill(0, [chunk(SOURCES[at])]).copy() for at in range(3)}
    kept = {at: {} for at in range(3)}
    for at in range(3):
        graph.prefill(0, [chunk(SOURCES[at])])
        kept[at] = {name: tensor[0, :, : len(SOURCES[at])].copy() for name, tensor in graph._cross.items()}
    graph.prefill(0, [chunk(long), *(chunk(SOURCES[at]) for at in range(3))])
    assert graph._mask.shape[1] == 2 * WIDTH_STEP == len(long) + 8
    for at in range(3):
        for name, tensor in graph._cross.items():
            assert (tensor[at + 1, :, : len(SOURCES[at])] == kept[at][name]).all()
    again = graph.prefill(1, [chunk(SOURCES[0])])
    assert (again == alone[0]).all(), "attention over padding changes no bit"


def test_logits_are_bit_equal_alone_and_among_sixteen(tmp_path: Path) -> None:
    """Prompts, and sources of up to 120 tokens, of all lengths; also where a neighbour needs a wider memory."""
    export_encoder_decoder(tiny_encoder_decoder("t5"), tmp_path, opset=18)
    numbers = np.random.default_rng(3)
    chunks = [
        PromptChunk(numbers.integers(5, 190, 1 + place // 4), source=numbers.integers(5, 190, size))
        for place, size in enumerate(numbers.integers(1, 121, 16))
    ]

    def logits(rows: list[PromptChunk]) -> list[Any]:
        graph = opened(tmp_path, slots=16)
        found = [graph.prefill(0, rows).copy()]
        lengths = np.array([len(row.tokens) for row in rows])
        return [*found, *(graph.step(np.full(len(rows), 30 + step), lengths + step).copy() for step in range(3))]

    together = logits(chunks)
    for row, one in enumerate(chunks):
        for alone, among in zip(logits([one]), together, strict=True):
            np.testing.assert_array_equal(alone[0], among[row])


def test_the_memory_for_sources_grows_and_shrinks_with_them(graph: EncoderDecoderGraph) -> None:
    short = SOURCES[0]
    right = graph.prefill(0, [chunk(short)]).copy()
    stepped = graph.step(np.array([9]), np.array([1])).copy()
    assert graph._mask.shape[1] == WIDTH_STEP
    graph.prefill(0, [chunk(short)])
    graph.prefill(1, [chunk(short * 25)])
    assert graph._mask.shape[1] == 2 * WIDTH_STEP
    assert np.abs(graph.step(np.array([9, 9]), np.array([1, 1]))[0] - stepped[0]).max() < 1e-5
    assert np.abs(graph.prefill(1, [chunk(short)]) - right).max() < 1e-5
    assert graph._mask.shape[1] == WIDTH_STEP


def test_memory_that_grows_is_there_once(graph: EncoderDecoderGraph) -> None:
    """A tensor of before is freed before the next one is allocated."""
    tracemalloc.start()  # before the tensors of before, which count only while they are there
    graph._resize(2 * WIDTH_STEP, kept=0)
    graph._resize(WIDTH_STEP, kept=0)
    tensors = list(graph._cross.values())
    before, largest = sum(tensor.nbytes for tensor in tensors), max(tensor.nbytes for tensor in tensors)
    assert len(tensors) > 2
    del tensors
    tracemalloc.reset_peak()
    graph._resize(2 * WIDTH_STEP, kept=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(tensor.shape[2] == 2 * WIDTH_STEP for tensor in graph._cross.values())
    assert peak < 2 * before + 2 * largest


def test_a_copied_row_goes_on_as_the_other(graph: EncoderDecoderGraph) -> None:
    graph.prefill(0, [chunk(SOURCES[0], [2, 5, 6]), chunk(SOURCES[1], [2, 7])])
    graph.copy(0, 2, 3)
    graph.copy(2, 1, 3)
    first, second, third = graph.step(np.array([9, 9, 9]), np.array([3, 3, 3])).copy()
    assert (first == second).all()
    assert (first == third).all()


@pytest.mark.parametrize("length", [0, 128])
def test_a_source_of_no_or_too_many_tokens_is_refused(graph: EncoderDecoderGraph, length: int) -> None:
    with pytest.raises(ValueError, match="must have 1 to 127 tokens"):
        graph.prefill(0, [chunk([5] * length)])


def test_graphs_of_two_models_are_refused(tmp_path: Path) -> None:
    for name in ("bart", "t5"):
        export_encoder_decoder(tiny_encoder_decoder(name), tmp_path / name, opset=18)
    (tmp_path / "t5" / "decoder.onnx").replace(tmp_path / "bart" / "encoder.onnx")
    with pytest.raises(ValueError, match=r"encoder\.onnx does not write what decoder\.onnx reads"):
        opened(tmp_path / "bart")


def test_sources_are_encoded_in_steps_that_divide_the_width() -> None:
    assert WIDTH_STEP % ENCODER_STEP == 0


def test_only_what_rows_do_not_have_in_common_is_copied() -> None:
    shared = SharedPrefixes(4)
    assert shared.copied(0, 1, 5) == 0
    assert shared.copied(0, 2, 5) == 0
    assert shared.copied(1, 2, 8) == 5, "both continue row 0"
    assert shared.copied(2, 0, 9) == 5
    assert shared.copied(1, 0, 8) == 8, "row 0 is now row 2, which was row 1 up to there"
    shared.forget(1)
    assert shared.copied(1, 0, 3) == 0
    assert shared.copied(0, 2, 7) == 0
