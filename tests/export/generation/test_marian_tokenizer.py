"""Marian's tokenizer, made of two SentencePiece models and one vocabulary, tokenizes as the slow one of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.generation.marian_tokenizer import is_marian, marian_tokenizer
from serving.errors import ArtifactError

SOURCE = {"▁": -3.0, "▁a": -2.0, "▁dog": -2.5, "d": -5.0, "o": -5.0, "g": -5.0, "s": -4.0, "a": -5.0, "▁do": -4.5, ".": -4.0}
TARGET = {"▁": -3.0, "▁ein": -2.0, "▁Hund": -2.5, ".": -4.0} | dict.fromkeys("einHudßüs", -6.0)
TOKENS = ["</s>", "<unk>", *dict.fromkeys([*SOURCE, *TARGET]), ">>deu<<", "<pad>"]
TEXTS = {
    "a dog": "▁a ▁dog",
    "  a   dog.  ": "▁a ▁dog .",
    "dogs do": "▁dog s ▁do",
    "god": "▁ g o d",
    "a ü dog": "▁a ▁ ü ▁dog",
    "sß": "▁ s ß",
    "x": "▁ <unk>",
    "": "",
    "   ": "",
    ">>deu<< a dog": ">>deu<< ▁a ▁dog",
}
"""Texts and their tokens by ``MarianTokenizer`` with sentencepiece 0.2.1, without the end."""
TARGET_TEXTS = {"ein Hund.": "▁ein ▁Hund .", " eins  ": "▁ein s", "einHund": "▁ein H u n d", "o ein": "▁ o ▁ein"}


def write_model(path: Path, pieces: dict[str, float], *, model_type: int = 1) -> None:
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.trainer_spec.model_type = model_type
    model.normalizer_spec.name = "identity"
    for piece, score, kind in [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((*one, 1) for one in pieces.items())]:
        model.pieces.add(piece=piece, score=score, type=kind)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_model(tmp_path / "source.spm", SOURCE)
    write_model(tmp_path / "target.spm", TARGET)
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(TOKENS)}), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"source_lang": "eng", "target_lang": "deu"}', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_sources_have_the_tokens_of_transformers(checkpoint: Path, text: str) -> None:
    found = marian_tokenizer(checkpoint, "source").encode(text)
    assert [TOKENS[number] for number in found.ids] == [*TEXTS[text].split(), "</s>"]


@pytest.mark.parametrize(("text", "tokens"), TARGET_TEXTS.items())
def test_targets_have_pieces_of_their_own(checkpoint: Path, text: str, tokens: str) -> None:
    tokenizer = marian_tokenizer(checkpoint, "target")
    found = tokenizer.encode(text)
    assert [TOKENS[number] for number in found.ids] == [*tokens.split(), "</s>"]
    assert tokenizer.decode(found.ids) == marian_tokenizer(checkpoint, "source").decode(found.ids) == text.strip()


def test_it_is_known_by_its_files(checkpoint: Path) -> None:
    assert is_marian(checkpoint)
    (checkpoint / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert not is_marian(checkpoint), "a tokenizer.json comes first"
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "target.spm").unlink()
    assert not is_marian(checkpoint)


def damaged(folder: Path) -> Any:
    (folder / "source.spm").write_bytes(b"no model")


def cut(folder: Path) -> Any:
    (folder / "vocab.json").write_text('{"<unk>": ', encoding="utf-8")


def two_vocabularies(folder: Path) -> Any:
    (folder / "tokenizer_config.json").write_text('{"separate_vocabs": true}', encoding="utf-8")


def byte_pairs(folder: Path) -> Any:
    write_model(folder / "source.spm", SOURCE, model_type=2)


def gap(folder: Path) -> Any:
    numbers = {token: number * 2 for number, token in enumerate(TOKENS)}
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")


def unnumbered(folder: Path) -> Any:
    write_model(folder / "source.spm", SOURCE | {"▁cat": -3.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged, "is damaged"),
        (cut, "is damaged"),
        (two_vocabularies, "numbers the tokens of the two languages separately"),
        (byte_pairs, "its SentencePiece model is not a unigram model"),
        (gap, r"vocab\.json does not number its tokens from 0 on"),
        (unnumbered, r"1 pieces of its SentencePiece model, such as '▁cat', are not in vocab\.json"),
    ],
)
def test_files_that_are_not_one_tokenizer_are_refused(checkpoint: Path, change: Any, message: str) -> None:
    change(checkpoint)
    with pytest.raises(ArtifactError, match=message):
        marian_tokenizer(checkpoint, "source")
