"""The variants of an encoder-decoder are verified as they are served, and those that differ fail their gates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from export.generation import encoder_decoder_variants
from export.generation.encoder_decoder_gates import EncoderDecoderLimits, TextMetric
from export.generation.encoder_decoder_graph import export_encoder_decoder
from export.generation.encoder_decoder_rows import EncoderDecoderGeneration, EncoderDecoderRows, start_tokens
from export.generation.encoder_decoder_variants import EncoderDecoderExport, build_encoder_decoder
from export.generation.original_encoder_decoder import OriginalEncoderDecoder
from export.generation.served_encoder_decoder import ServedEncoderDecoder
from export.rowwise_int8 import quantize_rowwise
from serving.errors import DataError, ExportError
from tests.helpers.encoder_decoders import SOURCES, tiny_encoder_decoder

SETTINGS = {"num_beams": 3, "length_penalty": 1.5, "no_repeat_ngram_size": 3, "eos_token_id": [2, 30, 31, 32], "max_length": 512}
ROUGE = TextMetric(name="rouge", figure="rouge_l")


def decode(tokens: Any) -> str:
    return " ".join(f"w{token}" for token in tokens)


GENERATION = EncoderDecoderGeneration(start=[7], settings=SETTINGS, decode=decode)


def made_rows(model: Any) -> EncoderDecoderRows:
    """Rows whose right texts are almost those of the model, so that there is something to lose."""
    original = OriginalEncoderDecoder(model, [7])
    right = [original.answer(source, GENERATION.limited(12)) for source in SOURCES]
    return EncoderDecoderRows(sources=SOURCES, targets=right, references=[[decode(answer[1:])] for answer in right])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncoderDecoderExport, Path]:
    model, folder = tiny_encoder_decoder("mbart"), tmp_path_factory.mktemp("bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_decoder_variants, "ANSWER_TOKENS", 12)
        made = build_encoder_decoder(
            model,
            made_rows(model),
            GENERATION,
            folder,
            precisions=("fp32", "int8"),
            texts=TextMetric(name="rouge", figure="rouge_l"),
        )
    return made, folder


def test_fp32_gives_the_tokens_of_transformers(exported: tuple[EncoderDecoderExport, Path]) -> None:
    found = exported[0].variants["fp32"]
    assert found.passed, [gate.message for gate in found.gates if not gate.passed]
    assert (found.figures.greedy.equal, found.beams.equal, found.beams.answers) == (16, 16, 16)
    assert found.figures.token_agreement == 1
    assert found.figures.max_logit_difference is not None
    assert found.figures.max_logit_difference < 1e-3
    assert (found.texts.drop, found.texts.original) == (0, found.texts.variant)
    assert 0 < found.texts.original < 1
    names = [gate.name for gate in found.gates]
    assert names == [
        "perplexity_increase", "token_agreement", "max_logit_difference", "greedy_answers", "beam_answers", "metric_drop",
    ]  # fmt: skip
    assert found.speed.alone > 0


def test_int8_is_measured_by_agreement_and_by_its_texts(exported: tuple[EncoderDecoderExport, Path]) -> None:
    made, folder = exported
    found = made.variants["int8"]
    assert found.file == "int8/decoder.onnx"
    assert sorted(path.name for path in (folder / "int8").iterdir()) == ["decoder.onnx", "encoder.onnx"]
    assert [gate.name for gate in found.gates] == ["perplexity_increase", "token_agreement", "answers_alone", "metric_drop"]
    assert found.figures.answers_alone_equal == 16, "an answer does not depend on the other rows"
    assert 0.3 < found.figures.token_agreement < 1
    low, high = found.texts.drop_interval
    assert low <= found.texts.drop <= high
    assert found.texts.drop == pytest.approx(100 * (found.texts.original - found.texts.variant))
    assert found.bytes < made.variants["fp32"].bytes
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_int8_gives_a_row_the_same_bits_alone_and_among_others(name: str, tmp_path: Path) -> None:
    model = tiny_encoder_decoder(name)
    graphs = export_encoder_decoder(model, tmp_path / "fp32", opset=18)
    for path in (graphs.encoder, graphs.decoder):
        assert quantize_rowwise(path, tmp_path / path.name) > 10
    sizes = {"rows": 16, "capacity": 16, "source_capacity": 120}
    served = ServedEncoderDecoder(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx", [2], **sizes, threads=1)
    sources = [*SOURCES[:7], SOURCES[3] * 4]
    answers = [source[:9] for source in sources]
    together = served.logits(sources, answers)
    for source, answer, found in zip(sources, answers, together, strict=True):
        assert (served.logits([source], [answer])[0] == found).all()


def test_another_model_in_place_of_a_variant_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = tiny_encoder_decoder("mbart"), tiny_encoder_decoder("mbart", seed=1)
    export = encoder_decoder_variants.export_encoder_decoder
    monkeypatch.setattr(
        encoder_decoder_variants, "export_encoder_decoder", lambda _, *given, **named: export(other, *given, **named)
    )
    monkeypatch.setattr(encoder_decoder_variants, "ANSWER_TOKENS", 4)
    rows = dataclasses.replace(made_rows(model), sources=SOURCES)
    found = build_encoder_decoder(
        model,
        rows,
        GENERATION,
        tmp_path,
        precisions=("fp32",),
        texts=ROUGE,
        limits=EncoderDecoderLimits(max_metric_drop=1.0),
    ).variants["fp32"]
    assert not any(gate.passed for gate in found.gates)
    assert "beam-search answers have the tokens of transformers' generate; all must" in found.gates[-2].message
    assert "rouge_l drops by" in found.gates[-1].message


def test_fp16_is_refused(tmp_path: Path) -> None:
    rows = EncoderDecoderRows(sources=SOURCES, targets=SOURCES, references=[["a"]] * len(SOURCES))
    with pytest.raises(ExportError, match="encoder-decoders are exported in fp32 and int8, not in fp16"):
        build_encoder_decoder(None, rows, GENERATION, tmp_path, precisions=("fp32", "fp16"), texts=ROUGE)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    rows = EncoderDecoderRows(sources=[], targets=[], references=[])
    with pytest.raises(DataError, match="no rows to verify on"):
        build_encoder_decoder(None, rows, GENERATION, tmp_path, precisions=("fp32",), texts=ROUGE)


def test_settings_of_a_verification_do_not_sample() -> None:
    generation = dataclasses.replace(GENERATION, settings={"do_sample": True, "max_new_tokens": 40, "num_beams": 4})
    assert generation.limited(12) == {"do_sample": False, "max_new_tokens": 12, "num_beams": 4, "num_return_sequences": 1}
    assert generation.limited(90, num_beams=1)["max_new_tokens"] == 40


def test_the_start_token_is_that_of_generate() -> None:
    assert start_tokens({"decoder_start_token_id": 0, "bos_token_id": 5}) == [0]
    assert start_tokens({"bos_token_id": 5}) == [5]
    for wrong in (None, -1, [1, 2], True, "2"):
        with pytest.raises(ExportError, match=r"which is .*, not a token"):
            start_tokens({"decoder_start_token_id": wrong})  # type: ignore[dict-item]
