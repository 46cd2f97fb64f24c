"""Marian's tokenizer: a SentencePiece model for each language, and one vocabulary that numbers the pieces of both."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer, processors
from transformers import MarianTokenizer, PreTrainedTokenizerFast

from export.slow_tokenizers.sentencepiece_model import SentencePieceModel
from export.slow_tokenizers.sentencepiece_tokenizer import SentencePieceVocabulary, numbered_tokens


class MarianTokenizerFast(PreTrainedTokenizerFast):  # type: ignore[misc]  # transformers is untyped
    """Tokenizes as ``MarianTokenizer``, from the same files.

    ``backend_tokenizer`` is that of the texts, except within a call with ``text_target``.

    Attributes:
        slow: The tokenizer of ``transformers``.
        target_tokenizer: Tokenizes targets.
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
        if self.slow.separate_vocabs:
            raise ValueError(
                "it numbers the tokens of the two languages separately, which the model in transformers does not support"
            )
        source, target = (self._vocabulary(Path(file)) for file in self.slow.spm_files)
        self.missing_pieces = len({*source.missing, *target.missing})
        super().__init__(
            tokenizer_object=self._ending(source.tokenizer()),
            added_tokens_decoder=self.slow.added_tokens_decoder,
            **self.slow.init_kwargs,
        )
        self._source: Tokenizer = self.backend_tokenizer
        self.target_tokenizer = self._with_added_tokens(self._ending(target.tokenizer()))

    def _vocabulary(self, file: Path) -> SentencePieceVocabulary:
        encoder = self.slow.encoder
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

    def _ending(self, tokenizer: Tokenizer) -> Tokenizer:
        end = str(self.slow.eos_token)
        tokenizer.post_processor = processors.TemplateProcessing(single=["$A", end], special_tokens=[(end, self.slow.encoder[end])])
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

    def _save_pretrained(self, save_directory: str, file_names: tuple[str, ...], **kwargs: Any) -> tuple[str, ...]:
        """Write ``tokenizer.json`` and the files that ``MarianTokenizer`` reads."""
        written = super()._save_pretrained(save_directory, file_names, **kwargs)
        return (*written, *self.slow.save_vocabulary(str(save_directory)))
