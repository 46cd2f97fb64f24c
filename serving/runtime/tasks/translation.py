"""Translation: a text → the same in another language.

Some checkpoints translate between two languages, some (T5) are told by a prefix which, and some (NLLB, mBART) by tokens that their
tokenizer has for languages: those must be told both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ._rewriting import RewritingTask
from .base import Option

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11


@dataclass(frozen=True, kw_only=True)
class Translation(RewritingTask):
    """Args:
    source_language, target_language: as the tokenizer calls them; empty: it knows none.
    target_language_id: the token that tells the model what to write; -1: none does.
    """

    source_language: str = ""
    target_language: str = ""
    target_language_id: int = -1

    name: ClassVar[str] = "translation"
    columns: ClassVar[Mapping[str, str | None]] = {"text": "source", "text_pair": None, "label": "target"}
    setup: ClassVar[Mapping[str, Option]] = {
        **RewritingTask.setup,
        "source_language": Option(str),
        "target_language": Option(str),
    }

    def with_tokenizer(self, tokenizer: Any) -> Self:
        given = {"source_language": self.source_language, "target_language": self.target_language}
        if not hasattr(tokenizer, "tgt_lang"):
            if any(given.values()):
                raise ValueError("its tokenizer knows no languages: leave out source_language and target_language")
            return super().with_tokenizer(tokenizer)
        for name, language in given.items():
            if not language:
                raise ValueError(f"its tokenizer must be told the languages: give --setting {name}=… as it calls it")
            if language not in tokenizer.get_vocab():
                raise ValueError(f"its tokenizer has no {name} {language!r}")
        tokenizer.src_lang, tokenizer.tgt_lang = given.values()
        bound = super().with_tokenizer(tokenizer)
        return replace(bound, target_language_id=tokenizer.convert_tokens_to_ids(self.target_language))

    def generation(self) -> dict[str, Any]:
        if self.target_language_id < 0:
            return super().generation()
        # it is the first token that is written, or, where targets do not begin with it, the one before that
        told = "forced_bos_token_id" if self.target_language_id in self.target_start else "decoder_start_token_id"
        return {**super().generation(), told: self.target_language_id}

    @property
    def metric(self) -> str:
        return "translation"

    @property
    def main_metric(self) -> str:
        return "chrf"


TASK = Translation
