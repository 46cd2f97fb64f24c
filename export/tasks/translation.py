"""Translation: a text → the same in another language.

Some checkpoints translate between two languages. Some (T5) read from a prefix which ones. Some (NLLB, mBART) have tokens for
languages in their tokenizer: those need both languages as settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from export.tasks._rewriting import RewritingTask
from serving.runtime.tasks.translation import Translation
from serving.runtime.types import Setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True)
class TranslationTask(RewritingTask):
    """Trains and exports translation. See :class:`RewritingTask` for the other fields.

    Attributes:
        source_language: Language of the texts, by the tokenizer's name. Empty: the tokenizer has no languages.
        target_language: Language of the answers, by the tokenizer's name.
        target_language_id: Token that tells the model what to write. -1: none.
    """

    source_language: str = ""
    target_language: str = ""
    target_language_id: int = -1

    name: ClassVar[str] = "translation"
    served_class: ClassVar[type[Translation]] = Translation
    columns: ClassVar[Mapping[str, str | None]] = {"text": "source", "text_pair": None, "label": "target"}
    settings: ClassVar[Mapping[str, Setting]] = {
        **RewritingTask.settings,
        "source_language": Setting(str, help="Language of the texts, by the tokenizer's name."),
        "target_language": Setting(str, help="Language of the answers, by the tokenizer's name."),
    }

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Set the tokenizer's languages, and find the token of the target language."""
        given = {"source_language": self.source_language, "target_language": self.target_language}
        languages = language_tokens(tokenizer)
        if not languages:
            if any(given.values()):
                raise ValueError("its tokenizer has no languages: leave out source_language and target_language")
            return super().with_tokenizer(tokenizer)
        for name, language in given.items():
            if not language:
                raise ValueError(f"its tokenizer needs the languages: give --setting {name}=… with the tokenizer's language code")
            if language not in languages:
                raise ValueError(f"its tokenizer has no {name} {language!r}")
        tokenizer.src_lang, tokenizer.tgt_lang = given.values()
        bound = super().with_tokenizer(tokenizer)
        return replace(bound, target_language_id=languages[self.target_language])

    def bound_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, object]) -> Self:
        """Return the task with the served half of a checkpoint, and the tokens of its languages if it has several."""
        bound = super().bound_to(model, tokenizer, config)
        assert isinstance(bound.served, Translation)
        if self.target_language_id < 0:
            return bound
        served = replace(
            bound.served,
            src_lang=self.source_language,
            tgt_lang=self.target_language,
            languages=language_tokens(tokenizer),
            tokenizer_language=self.source_language,
        )
        return replace(bound, served=served)

    def generation_settings(self) -> dict[str, object]:
        """Add the token of the target language.

        It is the first token to generate; where targets do not begin with it, it is the start token of the decoder.
        """
        if self.target_language_id < 0:
            return super().generation_settings()
        key = "forced_bos_token_id" if self.target_language_id in self.target_start else "decoder_start_token_id"
        return {**super().generation_settings(), key: self.target_language_id}

    @property
    def metric(self) -> str:
        """Return the metric of translation."""
        return "translation"

    @property
    def default_metric(self) -> str:
        """Return chrF."""
        return "chrf"

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of the metric of which higher is better."""
        return ("chrf", "bleu")


def language_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the token of each language by its name; none if the tokenizer has no languages."""
    if not hasattr(tokenizer, "tgt_lang"):
        return {}
    if hasattr(tokenizer, "language_tokens"):
        return dict(tokenizer.language_tokens)
    codes = [str(code) for code in tokenizer.additional_special_tokens]
    return dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))


TASK = TranslationTask
