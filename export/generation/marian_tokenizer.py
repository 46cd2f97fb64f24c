"""A fast tokenizer for Marian checkpoints, for which ``transformers`` has only a slow one that needs SentencePiece.

A Marian checkpoint has two SentencePiece models, one per language, and one vocabulary that numbers the pieces of both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serving.errors import ArtifactError, refusing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILES = ("source.spm", "target.spm", "vocab.json")
UNIGRAM, NORMAL = 1, 1
"""SentencePiece's numbers of the model type and of the piece type."""
FOREIGN_CHARACTER, FOREIGN_PIECE = -1e4, -1e6
"""Scores of pieces of the other language. A character is chosen if this language has no piece for it. A longer piece never is,
because SentencePiece models have a piece for each of their characters."""
SPACE = "▁"


def is_marian(folder: Path) -> bool:
    """Return whether a folder has the files of a Marian tokenizer and no ``tokenizer.json``."""
    return all((folder / name).is_file() for name in FILES) and not (folder / "tokenizer.json").is_file()


def marian_tokenizer(folder: Path, side: Literal["source", "target"]) -> Tokenizer:
    """Make the tokenizer of one language of a checkpoint.

    It tokenizes as ``MarianTokenizer``, with two exceptions. Of several characters in a row that its language has no piece for,
    each gets a token of its own if the vocabulary has one, where SentencePiece takes all of them as one unknown token. A code of
    a language, such as ``>>deu<<``, is one token anywhere in a text, not only at its beginning.

    Args:
        folder: The checkpoint.
        side: ``source`` for what the model reads, ``target`` for what it is trained to write. Both decode alike.

    Returns:
        The tokenizer. It appends ``</s>``.

    Raises:
        ArtifactError: A file is damaged, or the files do not make one tokenizer.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    with refusing(f"the tokenizer of {folder} is damaged", hint="get the checkpoint again"):
        vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        pieces = _read_model(folder / f"{side}.spm")
        config = folder / "tokenizer_config.json"
        settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    _require_one_vocabulary(folder, vocabulary, pieces, settings)
    scores = {piece.piece: piece.score for piece in pieces.pieces if piece.type == NORMAL}
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    tokenizer = Tokenizer(
        models.Unigram(
            [(piece, scores.get(piece, FOREIGN_CHARACTER if len(piece) == 1 else FOREIGN_PIECE)) for piece in ordered],
            unk_id=vocabulary["<unk>"],
        )
    )
    special = [AddedToken(token, special=True, normalized=False) for token in ("</s>", "<unk>", "<pad>")]
    tokenizer.add_special_tokens(special)
    languages = [token for token in ordered if token.startswith(">>") and token.endswith("<<")]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in languages])
    charsmap = pieces.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(charsmap)] if charsmap else []),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])])
    return tokenizer


def _read_model(path: Path) -> Any:
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def _require_one_vocabulary(folder: Path, vocabulary: dict[str, int], pieces: Any, settings: dict[str, object]) -> None:
    """Check that the numbers of the vocabulary can be those of a model of ``tokenizers``.

    Raises:
        ArtifactError: They cannot.
    """

    def refuse(reason: str) -> ArtifactError:
        return ArtifactError(f"the tokenizer of {folder} cannot be served: {reason}")

    if settings.get("separate_vocabs"):
        raise refuse("it numbers the tokens of the two languages separately")
    if pieces.trainer_spec.model_type != UNIGRAM:
        raise refuse("its SentencePiece model is not a unigram model")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not {"<unk>", "</s>", "<pad>"} <= vocabulary.keys():
        raise refuse("vocab.json does not number its tokens from 0 on, or lacks a special token")
    missing = [piece.piece for piece in pieces.pieces if piece.type == NORMAL and piece.piece not in vocabulary]
    if missing:
        raise refuse(f"{len(missing)} pieces of its SentencePiece model, such as {missing[0]!r}, are not in vocab.json")
