"""Tiny SentencePiece models, and the files of the tokenizers of Marian and M2M100 that use them, trained offline."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.helpers.reviews import BAD, FILLING, GOOD

SOURCES = [*GOOD, *BAD, *FILLING, "A warm, funny film.", "It costs 10 € & more!", "naïve café"]
TARGETS = [text[::-1] for text in SOURCES] + ["Straße über Köln", "中文 电影 很好看", "это фильм", "中文", "电影"]
CODES = (">>deu<<", ">>fra<<", ">>cmn_Hans<<")


def write_sentencepiece(path: Path, texts: Iterable[str], *, size: int = 150, **options: Any) -> list[str]:
    """Train a model, and return its pieces without special ones."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(texts) * 3), model_writer=written, vocab_size=size, character_coverage=1.0, num_threads=1,
        hard_vocab_limit=False, minloglevel=3, **options,
    )  # fmt: skip
    path.write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return [model.id_to_piece(number) for number in range(3, model.get_piece_size())]


def write_marian_files(folder: Path, sources: Iterable[str] = SOURCES, targets: Iterable[str] = TARGETS, **options: Any) -> Path:
    """Write what ``MarianTokenizer`` reads.

    Args:
        folder: Where to write.
        sources: Texts of one language.
        targets: Texts of the other.
        options: Of SentencePiece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    both = [
        write_sentencepiece(folder / name, texts, **options) for name, texts in (("source.spm", sources), ("target.spm", targets))
    ]
    config: dict[str, Any] = {
        "source_lang": "eng",
        "target_lang": "deu",
        "tokenizer_class": "MarianTokenizer",
        "model_max_length": 48,
    }
    tokens = ["</s>", "<unk>", *dict.fromkeys([*both[0], *both[1]]), *CODES, "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_m2m100_files(folder: Path, texts: Iterable[str] = (*SOURCES, *TARGETS), **options: Any) -> Path:
    """Write what ``M2M100Tokenizer`` reads, with the languages of the WMT21 models."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = write_sentencepiece(folder / "sentencepiece.bpe.model", texts, **options)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    languages = [f"__{code}__" for code in ("en", "ha", "is", "ja", "cs", "ru", "zh", "de")]
    config = {
        "language_codes": "wmt21",
        "additional_special_tokens": languages,
        "tokenizer_class": "M2M100Tokenizer",
        "model_max_length": 48,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
