"""Translation: a text → the same in another language.

The answers are those of ``transformers.pipeline("translation_xx_to_yy")``. A model of many languages needs ``src_lang`` and
``tgt_lang``, from the request or from its settings; other models ignore them, as the pipeline does. A text that is longer than the
model accepts is refused, unless ``truncation`` is true.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..types import Flags, Integers, JsonValue, OptionChoiceError, OptionTypeError, Setting, one_of
from ._text2text import Text2TextTask

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11


@dataclass(frozen=True, kw_only=True)
class Translation(Text2TextTask):
    """Serves translation.

    Attributes:
        src_lang: Language of the text, as the tokenizer calls it. None: the request says it, or the model has one only.
        tgt_lang: Language of the translation, as ``src_lang``.
        languages: The token of each language. Empty: the model translates between two languages.
        tokenizer_language: The language whose token ``tokenizer.json`` adds to each text: that of ``src_lang`` replaces it.
    """

    src_lang: str | None = None
    tgt_lang: str | None = None
    languages: Mapping[str, int] = field(default_factory=dict)
    tokenizer_language: str | None = None

    name: ClassVar[str] = "translation"
    answer_key: ClassVar[str] = "translation_text"
    options: ClassVar[Mapping[str, Setting]] = {
        "src_lang": Setting(str, help="Language of the text."),
        "tgt_lang": Setting(str, help="Language of the translation."),
        **Text2TextTask.options,
    }

    request_only: ClassVar[frozenset[str]] = Text2TextTask.request_only | {"src_lang", "tgt_lang"}

    @property
    def example(self) -> dict[str, str]:
        """Return a short text."""
        return {"TEXT": "How old are you?"}

    def with_values(self, given: Mapping[str, JsonValue]) -> Self:
        """Return the task with the options of a request; the translation then begins with the token of its language.

        Raises:
            ValueError: As in the base class; or a language is missing, or the model does not know it.
        """
        chosen = super().with_values(given)
        if chosen.languages:
            if chosen.src_lang is None or chosen.tgt_lang is None:
                raise ValueError("options src_lang and tgt_lang are needed: this model translates between many languages")
            options = chosen.generation_options
            first = chosen.language_token("tgt_lang", chosen.tgt_lang)
            if given.get("forced_bos_token_id") not in (None, first):
                raise OptionTypeError("option forced_bos_token_id is the token of the language in this model: give tgt_lang")
            chosen.language_token("src_lang", chosen.src_lang)
            vars(chosen)["generation_options"] = dataclasses.replace(options, forced_bos_token_id=first)
        return chosen

    def source_tokens(self, tokens: Integers, special: Flags) -> Integers:
        """Put the token of the text's language in the place of the one that ``tokenizer.json`` adds."""
        if not self.languages or self.tokenizer_language is None or self.src_lang is None:
            return tokens
        place = special & (tokens == self.languages[self.tokenizer_language])
        return np.where(place, self.languages[self.src_lang], tokens)

    def language_token(self, option: str, language: str) -> int:
        """Return the token of a language.

        Raises:
            OptionChoiceError: The model does not know the language.
        """
        if language not in self.languages:
            known = one_of(sorted(self.languages))
            raise OptionChoiceError(f"option {option} must be {known}, not {language!r:.80}")
        return self.languages[language]


TASK = Translation
