"""What an encoder-decoder is verified on, and how it generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from serving.errors import ExportError
from serving.runtime.types import JsonValue

UNCOMPARED = ("max_length", "max_time", "stop_strings", "include_stop_strings", "seed")
"""Options that the answers of a comparison do without: what ends them early, and what ``generate`` does not have."""


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderRows:
    """What an encoder-decoder is verified on. The fields have one entry per held-out row.

    Attributes:
        sources: Tokens of each source, as the model gets them.
        targets: Tokens of the first right text, as the model is trained to generate them.
        references: The right texts.
    """

    sources: Sequence[Sequence[int]]
    targets: Sequence[Sequence[int]]
    references: Sequence[Sequence[str]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.sources)

    def cut(self, count: int, *, target_tokens: int, source_tokens: int | None) -> Self:
        """Return the first rows, with targets cut to the tokens that are compared, and sources to what the model takes."""
        return replace(
            self,
            sources=[list(source[:source_tokens]) for source in self.sources[:count]],
            targets=[list(target[:target_tokens]) for target in self.targets[:count]],
            references=self.references[:count],
        )


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderGeneration:
    """How answers are generated.

    Attributes:
        start: Tokens that the decoder begins with.
        settings: Options by the names of ``transformers``, as they are served where a request has none.
        decode: From the tokens of an answer to its text.
    """

    start: Sequence[int]
    settings: Mapping[str, JsonValue]
    decode: Callable[[Sequence[int]], str]

    @property
    def length_penalty(self) -> float:
        """The length penalty of beam search."""
        found = self.settings.get("length_penalty", 1.0)
        assert isinstance(found, int | float), "GenerationOptions checks the settings"
        return found

    def limited(self, new_tokens: int, **changes: JsonValue) -> dict[str, JsonValue]:
        """Return the settings with at most ``new_tokens`` tokens per answer, without sampling."""
        kept = {name: value for name, value in self.settings.items() if name not in UNCOMPARED}
        own = kept.get("max_new_tokens")
        most = min(own, new_tokens) if isinstance(own, int) else new_tokens
        return {**kept, "max_new_tokens": most, "do_sample": False, "num_return_sequences": 1, **changes}


def start_tokens(generation_config: Mapping[str, JsonValue]) -> list[int]:
    """Return the tokens that a decoder begins with.

    Args:
        generation_config: The checkpoint's ``generation_config.json``, or its ``config.json`` if it has none.

    Raises:
        ExportError: It names no token.
    """
    found = generation_config.get("decoder_start_token_id")
    if found is None:
        found = generation_config.get("bos_token_id")
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise ExportError(
            f"the decoder begins with decoder_start_token_id, which is {found!r:.80}, not a token",
            hint="set it in generation_config.json",
        )
    return [found]
