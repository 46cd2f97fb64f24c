"""Marian's tokenizer: a SentencePiece model for each language, and one vocabulary that numbers the pieces of both, or two."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer, processors
from transformers import MarianTokenizer, PreTrainedTokenizerFast

from export.slow_tokenizers.sentencepiece_model import SentencePieceModel
from export.slow_tokenizers.sentencepiece_tokenizer import SentencePieceVocabulary, numbered_tokens
from serving.runtime.generation.source_reader import TARGET_TOKENIZER


class MarianTokenizerFast(PreTrainedTokenizerFast):  # type: ignore[misc]  # transformers is untyped
    """Tokenizes as ``MarianTokenizer``, from the same files.

    ``backend_tokenizer`` is that of the texts, except within a call with ``text_target``.

    Attributes:
        slow: The tokenizer of ``transformers``.
        target_tokenizer: Tokenizes targets, and decodes.
        missing_pieces: Number of pieces that the SentencePiece models have and the vocabulary does not.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "source_spm": "source.spm",
        "target_spm": "target.spm",
        "vocab": "vocab.json",
        "target_vocab_file": "target_vocab.json",
    }
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(self, *args: Any, tokenizer_file: str | None = None, **kwargs: Any) -> None:  # noqa: ARG002 - made from the others
        """Read the files.

        Args:
            args: Those of ``MarianTokenizer``.
            tokenizer_file: Not used: the other files say the same.
            kwargs: As ``args``.

        Raises:
            ValueError: The files do what ``tokenizers`` cannot.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")  # which no tokenization uses
            self.slow = MarianTokenizer(*args, **kwargs)
        if self.slow.sp_model_kwargs:
            raise ValueError("sp_model_kwargs in tokenizer_config.json changes how SentencePiece works")
        self._require_same_special_tokens()
        source, target = (
            self._vocabulary(Path(file), encoder)
            for file, encoder in zip(self.slow.spm_files, (self.slow.encoder, self._target_encoder()), strict=True)
        )
        self.missing_pieces = len(source.missing)
        super().__init__(
            tokenizer_object=self._ending(source.tokenizer(), self.slow.encoder),
            added_tokens_decoder=self.slow.added_tokens_decoder,
            **self.slow.init_kwargs,
        )
        self._source = self._tokenizer
        self.target_tokenizer = self._with_added_tokens(self._ending(target.tokenizer(), self._target_encoder()))

    def _require_same_special_tokens(self) -> None:
        """Check that both vocabularies number the special tokens alike.

        Raises:
            ValueError: They do not: ``transformers`` then takes other tokens of an answer for special ones.
        """
        one, other = self.slow.encoder, self._target_encoder()
        if odd := [token for token in self.slow.all_special_tokens if one.get(token) != other.get(token)]:
            raise ValueError(f"its two vocabularies number {odd[0]} differently")

    def _target_encoder(self) -> dict[str, int]:
        found: dict[str, int] = self.slow.target_encoder if self.slow.separate_vocabs else self.slow.encoder
        return found

    def _vocabulary(self, file: Path, encoder: dict[str, int]) -> SentencePieceVocabulary:
        model = SentencePieceModel.read(file)
        if model.algorithm != "unigram":
            raise ValueError(f"{file.name} is not a unigram model")
        return SentencePieceVocabulary(
            model=model,
            tokens=numbered_tokens(encoder),
            unknown=str(self.slow.unk_token),
            special=[token for token in self.slow.all_special_tokens if token in encoder],
            codes=[token for token in encoder if token.startswith(">>") and token.endswith("<<")],
        )

    def _ending(self, tokenizer: Tokenizer, encoder: dict[str, int]) -> Tokenizer:
        end = str(self.slow.eos_token)
        tokenizer.post_processor = processors.TemplateProcessing(single=["$A", end], special_tokens=[(end, encoder[end])])
        return tokenizer

    def _with_added_tokens(self, tokenizer: Tokenizer) -> Tokenizer:
        """Return a tokenizer that finds the same tokens in a text before its model is asked."""
        added = json.loads(self._source.to_str())["added_tokens"]
        content = json.loads(tokenizer.to_str())
        for token in added:
            token["id"] = tokenizer.token_to_id(token["content"])
        return Tokenizer.from_str(json.dumps(content | {"added_tokens": sorted(added, key=lambda token: token["id"])}))

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self._source

    def _switch_to_target_mode(self) -> None:
        self._tokenizer = self.target_tokenizer

    def _decode(self, token_ids: int | list[int], **kwargs: Any) -> str:
        self._switch_to_target_mode()
        try:
            found: str = super()._decode(token_ids, **kwargs)
        finally:
            self._switch_to_input_mode()
        return found

    def _save_pretrained(self, save_directory: str, file_names: tuple[str, ...], **kwargs: Any) -> tuple[str, ...]:
        """Write ``tokenizer.json``, that of targets if it has other numbers, and the files that ``MarianTokenizer`` reads."""
        written = super()._save_pretrained(save_directory, file_names, **kwargs)
        if self.slow.separate_vocabs:
            self.target_tokenizer.save(str(Path(save_directory) / TARGET_TOKENIZER))
        return (*written, *self.slow.save_vocabulary(str(save_directory)))
