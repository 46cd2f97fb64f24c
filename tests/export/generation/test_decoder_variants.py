"""Variants of a decoder that really learned to write are made, verified and measured."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import long_steps
from export.generation import decoder_variants, decoding_speed
from export.generation.decoder_gates import GenerationLimits
from export.generation.decoder_variants import DecoderExport, DecoderRows, build_decoder
from export.generation.slotted_decoder import SlottedDecoder
from serving.errors import DataError, ExportError
from tests.helpers.decoders import POSITIONS, made_up_rows, make_decoder
from tests.helpers.shared import STORIES, needs_shared

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She loved to play with her ball in the park.",
    "One day, Tom went to the park with his mom. He saw a big dog and was scared.",
    "The cat sat on the mat. It was very happy. Then a bird came and sang a song.",
    "Sam had a red car. He liked to play with it all day. His friend Ben wanted to play too.",
    "Mom said, “It is time to go to bed.” Lily did not want to sleep. She wanted to read a book.",
    "There was a big tree in the garden. The children climbed it and looked at the sky.",
    "The little boy was sad because he lost his toy. His dad helped him to look for it.",
    "One day, a small bird fell from its nest. A kind girl helped the bird to get home.",
]


@pytest.fixture(scope="module", autouse=True)
def few_tokens() -> Iterator[None]:
    """Answers and measurements that are as short as they can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_variants, "GREEDY_TOKENS", 10)
        patch.setattr(decoding_speed, "PASSES", 1)
        yield


@pytest.fixture(scope="module")
def stories() -> tuple[Any, DecoderRows]:
    """The model and its texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    model = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    return model, DecoderRows(rows=[tokenizer(text)["input_ids"] for text in TEXTS], end=[tokenizer.eos_token_id])


@pytest.fixture(scope="module")
def built(stories: tuple[Any, DecoderRows], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DecoderExport]:
    model, rows = stories
    staging = tmp_path_factory.mktemp("bundle")
    return staging, build_decoder(model, rows, staging, precisions=("fp32", "fp16", "int8"))


@needs_shared(STORIES)
def test_every_variant_of_a_trained_model_passes(built: tuple[Path, DecoderExport]) -> None:
    staging, export = built
    assert {name: [gate.message for gate in one.gates if not gate.passed] for name, one in export.variants.items()} == {
        "fp32": [],
        "fp16": [],
        "int8": [],
    }
    assert sorted(str(path.relative_to(staging)) for path in staging.rglob("*.*")) == sorted(
        one.file for one in export.variants.values()
    )
    assert export.rows == len(TEXTS)
    assert export.tokens > 200
    assert export.perplexity < 20, "it can read"
    assert export.layout.max_tokens == 512
    assert export.layout.cache_bytes_per_token == 5 * 2 * 4 * 8 * 4


@needs_shared(STORIES)
def test_the_figures_tell_the_variants_apart(built: tuple[Path, DecoderExport]) -> None:
    variants = built[1].variants
    differences = [variants[name].figures.max_logit_difference or np.nan for name in ("fp32", "fp16", "int8")]
    assert 0 < differences[0] < 1e-3 < differences[1] < differences[2]
    assert variants["int8"].bytes < variants["fp16"].bytes < variants["fp32"].bytes
    assert all(one.operators["GroupQueryAttention"] == 5 for one in variants.values())
    assert variants["fp32"].figures.greedy.equal == len(TEXTS)
    assert variants["fp32"].figures.perplexity == pytest.approx(built[1].perplexity, rel=1e-5)
    for speed in [built[1].speed, *(one.speed for one in variants.values())]:
        assert speed.together > speed.alone > 0


@needs_shared(STORIES)
def test_the_answer_reads_like_a_story(built: tuple[Path, DecoderExport]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    for precision in ("fp32", "fp16", "int8"):
        decoder = SlottedDecoder(built[0] / precision / "model.onnx", rows=1, capacity=64)
        (answer,) = decoder.greedy([tokenizer("Once upon a time")["input_ids"]], new_tokens=16)
        assert tokenizer.decode(answer).strip().startswith(", there was a little girl named Lily")


@needs_shared(STORIES)
def test_limits_of_the_user_decide(stories: tuple[Any, DecoderRows], tmp_path: Path) -> None:
    model, rows = stories
    limits = GenerationLimits(max_perplexity_increase=1e-6, min_token_agreement=0.9999)
    few = DecoderRows(rows=rows.rows[:3], end=rows.end)
    export = build_decoder(model, few, tmp_path, precisions=("int8",), limits=limits)
    gates = {gate.name: gate.passed for gate in export.variants["int8"].gates}
    assert gates == {"perplexity_increase": False, "token_agreement": False, "answers_alone": True}
    assert not export.variants["int8"].passed


def test_a_model_of_few_positions_is_verified_within_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tritonize")
    monkeypatch.setattr(long_steps, "PAUSE", 0.0)  # a line after each part of each step
    monkeypatch.setattr(long_steps, "SHARE", 0.0)
    rows = DecoderRows(rows=made_up_rows(3, longest=2 * POSITIONS), end=[2])
    export = build_decoder(make_decoder("gpt2"), rows, tmp_path, precisions=("fp32",))
    assert max(map(len, rows.rows)) > POSITIONS
    assert export.variants["fp32"].passed
    for step in ("tokens of fp32", "answers of PyTorch", "answers of fp32", "speed"):
        assert any(message.startswith(f"{step}: 1 of ") for message in caplog.messages), step


def test_rows_without_a_next_token_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row to verify on has two tokens"):
        build_decoder(make_decoder("llama"), DecoderRows(rows=[[5], []], end=[2]), tmp_path, precisions=("fp32",))


def test_a_diverged_model_is_an_error(tmp_path: Path) -> None:
    model = make_decoder("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ExportError, match="the PyTorch checkpoint gives NaN or infinite logits"):
        build_decoder(model, DecoderRows(rows=made_up_rows(3, longest=5), end=[2]), tmp_path, precisions=("fp32",))


def test_fp16_that_overflows_fails_its_gates(tmp_path: Path) -> None:
    """Beyond 65,504 fp16 is infinite."""
    model = copy.deepcopy(make_decoder("llama"))
    with torch.no_grad():
        model.model.embed_tokens.weight *= 3e5
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight / 3e5)
    rows = DecoderRows(rows=made_up_rows(3, longest=5), end=[2])
    export = build_decoder(model, rows, tmp_path, precisions=("fp32", "fp16"))
    assert export.variants["fp32"].passed
    assert [gate.name for gate in export.variants["fp16"].gates if not gate.passed] == ["perplexity_increase", "token_agreement"]
    assert export.variants["fp16"].figures.perplexity is None
