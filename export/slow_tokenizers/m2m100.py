"""M2M100's tokenizer: a SentencePiece model, a vocabulary that numbers its pieces, and behind it a token for each language."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from tokenizers import processors
from transformers import M2M100Tokenizer, PreTrainedTokenizerFast

from export.slow_tokenizers.sentencepiece_model import SentencePieceModel
from export.slow_tokenizers.sentencepiece_tokenizer import SentencePieceVocabulary, numbered_tokens


class M2M100TokenizerFast(PreTrainedTokenizerFast):  # type: ignore[misc]  # transformers is untyped
    """Tokenizes as ``M2M100Tokenizer``, from the same files.

    Attributes:
        slow: The tokenizer of ``transformers``.
        language_tokens: Token of each language, by its code.
        tgt_lang: Code of the language of targets.
        missing_pieces: Number of pieces that the SentencePiece model has and the vocabulary does not.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "vocab.json", "spm_file": "sentencepiece.bpe.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(self, *args: Any, tokenizer_file: str | None = None, **kwargs: Any) -> None:  # noqa: ARG002 - made from the others
        """Read the files.

        Args:
            args: Those of ``M2M100Tokenizer``.
            tokenizer_file: Not used: the other files say the same.
            kwargs: As ``args``.

        Raises:
            ValueError: The files do what ``tokenizers`` cannot.
        """
        self.slow = M2M100Tokenizer(*args, **kwargs)
        if self.slow.sp_model_kwargs:
            raise ValueError("sp_model_kwargs in tokenizer_config.json changes how SentencePiece works")
        self.language_tokens: dict[str, int] = self.slow.lang_code_to_id
        vocabulary = SentencePieceVocabulary(
            model=SentencePieceModel.read(Path(self.slow.spm_file)),
            tokens=numbered_tokens(self.slow.encoder | self.slow.lang_token_to_id),
            unknown=str(self.slow.unk_token),
            special=self.slow.all_special_tokens,
        )
        self.missing_pieces = len(vocabulary.missing)
        self.tgt_lang = self.slow.tgt_lang
        super().__init__(
            tokenizer_object=vocabulary.tokenizer(),
            added_tokens_decoder=self.slow.added_tokens_decoder,
            **self.slow.init_kwargs,
        )
        self._switch_to_input_mode()

    @property
    def src_lang(self) -> str:
        """Code of the language of texts."""
        return str(self.slow.src_lang)

    @src_lang.setter
    def src_lang(self, language: str) -> None:
        self.slow.src_lang = language
        self._switch_to_input_mode()

    def _begin_with(self, language: str) -> None:
        """Put the token of a language in front of what is tokenized.

        Raises:
            KeyError: There is no such language.
        """
        token, number, end = self.slow.get_lang_token(language), self.slow.get_lang_id(language), str(self.slow.eos_token)
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=[token, "$A", end], special_tokens=[(token, number), (end, self.slow.eos_token_id)]
        )

    def _switch_to_input_mode(self) -> None:
        self._begin_with(self.src_lang)

    def _switch_to_target_mode(self) -> None:
        self._begin_with(str(self.tgt_lang))

    def _build_translation_inputs(self, raw_inputs: Any, src_lang: str | None, tgt_lang: str | None, **options: Any) -> Any:
        """Tokenize texts for ``TranslationPipeline``.

        Raises:
            ValueError: A language is missing.
        """
        if src_lang is None or tgt_lang is None:
            raise ValueError("Translation requires a `src_lang` and a `tgt_lang` for this model")
        self.src_lang = src_lang
        return {**self(raw_inputs, **options), "forced_bos_token_id": self.slow.get_lang_id(tgt_lang)}

    def _save_pretrained(self, save_directory: str, file_names: tuple[str, ...], **kwargs: Any) -> tuple[str, ...]:
        """Write ``tokenizer.json`` and the files that ``M2M100Tokenizer`` reads."""
        written = super()._save_pretrained(save_directory, file_names, **kwargs)
        return (*written, *self.slow.save_vocabulary(str(save_directory)))
