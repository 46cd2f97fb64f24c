"""Base class of tasks whose pipeline in ``transformers`` passes options to the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..types import Features, JsonValue, Origins, Setting, TextColumns
from ._encoder import EncoderTask

if TYPE_CHECKING:
    from tokenizers import Encoding

    from ..tokenization import TextEncoder

WITHOUT_EFFECT = ("padding", "pad_to_multiple_of", "padding_side", "stride", "verbose")
"""Arguments of a tokenizer that change no answer: a padded token is not looked at, and the rest of a truncated text is dropped."""
TAKEN = ("truncation", "max_length", "add_special_tokens")
"""Arguments of a tokenizer that become request parameters."""
STRATEGIES = ("longest_first", "only_first", "only_second")
"""Which text of a pair is truncated, by the tokenizer's own names."""
NO_TRUNCATION = "do_not_truncate"
"""The tokenizer's name for no truncation."""
PADDINGS = (True, False, "longest", "max_length", "do_not_pad")


@dataclass(frozen=True, kw_only=True)
class TokenizerOptionsTask(EncoderTask):
    """Base class of tasks whose pipeline passes options to the tokenizer.

    Attributes:
        max_length: Tokens kept of a row, special tokens included. None: what the model accepts, which is always the limit.
        add_special_tokens: Whether the tokenizer adds special tokens.
        truncation_strategy: Which text of a pair is truncated, one of :data:`STRATEGIES`. An option where a task takes pairs.
    """

    max_length: int | None = None
    add_special_tokens: bool = True
    truncation_strategy: str = STRATEGIES[0]

    options: ClassVar[Mapping[str, Setting]] = {
        **EncoderTask.options,
        "max_length": Setting(int, minimum=1, help="Tokens kept of a row that is truncated, if the model accepts more."),
        "add_special_tokens": Setting(bool, help="Add special tokens."),
    }
    request_only: ClassVar[frozenset[str]] = frozenset({"max_length", "add_special_tokens"})
    tokenizer_kwargs: ClassVar[str | None] = None
    """The pipeline's option that holds the arguments of the tokenizer. None: they are options themselves."""

    def preprocess(self, columns: TextColumns, encoder: TextEncoder) -> Features:
        """Convert each request row to one model row."""
        encodings = self._encode(columns, encoder)
        return Features(encodings, Origins(np.arange(len(encodings))))

    def _encode(self, columns: TextColumns, encoder: TextEncoder) -> list[Encoding]:
        """Tokenize the rows as the options say.

        Raises:
            ValueError: A row is too long and is not truncated.
        """
        return encoder.encode(
            self.texts(columns),
            truncation=self.truncation,
            strategy=self.truncation_strategy,
            max_length=self.max_length,
            special_tokens=self.add_special_tokens,
        )

    # -- the client -----------------------------------------------------------------------------------------------------------

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Read the arguments of the tokenizer as the tokenizer does, then the other options."""
        own = dict(given)
        names = ("truncation",) if self.tokenizer_kwargs else (*TAKEN, *WITHOUT_EFFECT)
        inner = {name: own.pop(name) for name in names if name in own}
        if self.tokenizer_kwargs is not None:
            held = own.pop(self.tokenizer_kwargs, None) or {}
            if not isinstance(held, Mapping):
                raise TypeError(f"{self.tokenizer_kwargs} must be a dictionary, not {held!r:.80}")
            if inner.get("truncation") is not None and "truncation" in held:
                raise ValueError(f"truncation is given twice, as an option and in {self.tokenizer_kwargs}")
            inner |= held
        parameters, shown = super().sanitize_parameters(own)
        return parameters | self._tokenizer_parameters(inner), shown

    @property
    def call_options(self) -> tuple[str, ...]:
        """Return the names of the options that a pipeline call takes."""
        own = (self.tokenizer_kwargs,) if self.tokenizer_kwargs else ("max_length", "add_special_tokens", *WITHOUT_EFFECT)
        return (*super().call_options, *own)

    def _tokenizer_parameters(self, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Convert arguments of the tokenizer to request parameters.

        Raises:
            TypeError: The tokenizer has no such argument, or a request cannot have it.
            ValueError: The tokenizer refuses the value, or a request cannot have it.
        """
        if unknown := [name for name in given if name not in (*TAKEN, *WITHOUT_EFFECT)]:
            taken = ", ".join((*TAKEN, *WITHOUT_EFFECT))
            raise TypeError(f"{self.name} has no option {', '.join(unknown)} of the tokenizer; it has {taken}")
        check_padding(padding := given.get("padding"))
        parameters = self.request_parameters({name: value for name, value in given.items() if name in TAKEN})
        truncation = parameters.get("truncation")
        if isinstance(truncation, str):
            strategy = str(getattr(truncation, "value", truncation))
            self._require_strategy(strategy)
            parameters["truncation"] = truncation = strategy != NO_TRUNCATION
            if truncation and self.pair:
                parameters["truncation_strategy"] = strategy
        if truncation is False or (truncation is None and padding):  # the tokenizer then ignores the length
            parameters.pop("max_length", None)
        return parameters

    def _require_strategy(self, strategy: str) -> None:
        """Refuse a strategy of truncation that the tokenizer does not have, or that needs a second text.

        Raises:
            ValueError: It is one.
        """
        known = (*(STRATEGIES if self.pair else STRATEGIES[:2]), NO_TRUNCATION)
        if strategy not in known:
            raise ValueError(f"option truncation must be true, false or one of {', '.join(known)}, not {strategy!r:.80}")


def check_padding(padding: object) -> None:
    """Check the argument ``padding`` of a tokenizer. It changes no answer.

    Raises:
        ValueError: There is no such padding.
    """
    if padding is not None and getattr(padding, "value", padding) not in PADDINGS:
        raise ValueError(f"option padding must be one of {', '.join(map(str, PADDINGS))}, not {padding!r:.80}")
