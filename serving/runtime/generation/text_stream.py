"""From tokens to text as it grows: what was given out never changes, and all of it together is what the tokenizer decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from .generation_options import GenerationOptions

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS, WINDOW_TOKENS = 8, 24
"""Tokens before the new ones that are decoded with them, as decoders look at neighbours; and the most decoded at a time."""

SHOWN, HIDDEN = "+-"
"""Marks of characters that an answer shows, and of others."""
BASE = "abcdef"
"""Text in front of a token that is decoded alone."""


class Detokenizer:
    """What all texts of a model have in common.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = {token: self._behind_text(entry.content) for token, entry in added.items() if entry.special}
        """Texts of the special tokens, which the text of an answer does not show."""
        bytes_ = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.bytes = frozenset(token for token in bytes_ if token is not None)
        """Tokens of one byte each. A decoder makes text of a whole run of them: one wrong byte changes the text of all."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens. Special ones show."""
        return self._tokenizer.decode(tokens, skip_special_tokens=False) if tokens else ""

    def lead(self, token: int) -> str:
        """Return what a token has in front of its text behind other text, but not at the beginning: a space, or nothing."""
        behind, alone = self._behind_text(self._tokenizer.id_to_token(token) or ""), self.decode([token])
        return behind.removesuffix(alone) if behind.endswith(alone) else ""

    def _behind_text(self, token: str) -> str:
        """Return the text of a token that stands behind text, as the stop strings of ``transformers`` see it."""
        decoder = self._tokenizer.decoder
        return f" {token}" if decoder is None else decoder.decode([BASE, token]).removeprefix(BASE)

    def context(self, tokens: Sequence[int], end: int) -> int:
        """Return where to begin to decode what follows ``tokens[:end]``: not amid a run of bytes."""
        start = max(end - CONTEXT_TOKENS, 0)
        while start > 0 and tokens[start] in self.bytes:
            start -= 1
        return start


@dataclass(frozen=True)
class StopStrings:
    """Strings that end a sequence.

    Attributes:
        strings: The strings; none of them is empty.
        are_included: Let the text end with the token that completes a string, as in ``transformers``. If false, it ends before the
            string.
        in_whole_text: Search in the whole text, with the prompt and with the special tokens, which no answer shows, as
            ``transformers`` does. If false, search in the text of the answer alone, as vLLM does.
    """

    strings: tuple[str, ...] = ()
    are_included: bool = True
    in_whole_text: bool = True

    @cached_property
    def longest(self) -> int:
        """Return the length of the longest string."""
        return max(map(len, self.strings), default=0)

    @cached_property
    def _first_letters(self) -> frozenset[str]:
        return frozenset(string[0] for string in self.strings)

    def place(self, text: str, before: int) -> int | None:
        """Return where the first string begins that ends behind the first ``before`` characters of a text."""
        found = (text.find(string, max(before - len(string) + 1, 0)) for string in self.strings)
        return min((place for place in found if place >= 0), default=None)

    def tail(self, text: str) -> str:
        """Return the end of a text in which a string can begin that ends later."""
        return text[1 - self.longest :] if self.longest > 1 else ""

    def begun(self, tail: str) -> int:
        """Return how many characters of a text's tail may be the beginning of a string."""
        for at, letter in enumerate(tail):
            if letter in self._first_letters and any(string.startswith(tail[at:]) for string in self.strings):
                return len(tail) - at
        return 0


class TextStream:
    """The text of one sequence.

    All text together is ``decode(prompt + generated)`` without its first ``len(decode(prompt))`` characters, as
    ``transformers.pipeline`` cuts it (without ``clean_up_tokenization_spaces``, which is the client's affair), or ends at a stop
    string.

    Args:
        detokenizer: Of the model.
        prompt: The prompt's tokens.
        stops: Strings that end the sequence.
        streams: Whether the text is wanted before it is complete.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        prompt: Sequence[int],
        *,
        stops: StopStrings = StopStrings(),
        streams: bool = True,
    ) -> None:
        self._detokenizer, self._stops = detokenizer, stops
        self._follows = streams or bool(stops.strings)
        visible = [token for token in prompt if token not in detokenizer.special]
        self._tokens = visible[detokenizer.context(visible, len(visible)) :]
        self._start, self._read = 0, len(self._tokens)
        self._prefix = detokenizer.decode(self._tokens)
        whole = detokenizer.decode(prompt[-stops.longest - CONTEXT_TOKENS :]) if stops.strings and stops.in_whole_text else ""
        self._searched = stops.tail(whole)
        self._shown = HIDDEN * len(self._searched)  # which of the characters that were searched belong to the answer
        self._undecided = len(self._searched)  # characters at the end of these that may begin a stop string
        self._ahead = 0  # characters of unfinished text that were searched already, as they stand before a special token
        self._lead = ""  # what is searched in front of the next text, but does not show
        self._held = ""  # text that may become part of a stop string
        self._stopped = False

    def push(self, token: int) -> bool:
        """Append a token; return whether it completes a stop string."""
        if self._stopped:
            return True
        if (special := self._detokenizer.special.get(token)) is not None:
            if self._stops.strings and self._stops.in_whole_text:
                self._follow(special=special)
            return self._stopped
        if not self._tokens and self._stops.strings and self._stops.in_whole_text:
            self._lead = self._detokenizer.lead(token)
        self._tokens.append(token)
        if self._stops.strings or (self._follows and token not in self._detokenizer.bytes):
            self._follow()
        return self._stopped

    def take(self) -> str:
        """Return the text that has become certain since the last call."""
        whole = len(self._searched)
        is_certain = self._stops.are_included or self._stopped
        self._undecided = 0 if is_certain else self._stops.begun(self._searched[max(whole - self._undecided, 0) :])
        waits = self._shown[whole - self._undecided :].count(SHOWN) - self._ahead
        place = len(self._held) - max(waits, 0)
        certain, self._held = self._held[:place], self._held[place:]
        return certain

    def finish(self) -> str:
        """Return the rest of the text. No token may follow."""
        if not self._stopped:
            self._follow(final=True)
        rest, self._held = self._held, ""
        return rest

    def _follow(self, *, special: str = "", final: bool = False) -> None:
        """Decode what was not decoded yet, unless it ends amid a character.

        Args:
            special: Text behind it that does not show.
            final: Whether no token follows.
        """
        text = self._detokenizer.decode(self._tokens[self._start :])
        new = text[len(self._prefix) :]
        lead, fresh = self._lead, new[self._ahead :]
        searched = self._searched + lead + fresh + special
        shown = self._shown + HIDDEN * len(lead) + SHOWN * len(fresh) + HIDDEN * len(special)
        place = self._stops.place(searched, len(self._searched))
        self._stopped = place is not None
        unfinished = text.endswith(UNFINISHED) or (self._tokens and self._tokens[-1] in self._detokenizer.bytes)
        waits = unfinished and not (final or self._stopped)
        if special or not waits:
            self._searched = self._stops.tail(searched)
            self._shown = shown[len(shown) - len(self._searched) :]
            self._ahead = len(new) if waits else 0
            self._undecided += len(lead) + len(fresh) + len(special)
            self._lead = ""
        if waits:
            return
        self._read, self._prefix = len(self._tokens), text
        if self._read - self._start > WINDOW_TOKENS:
            self._start = self._detokenizer.context(self._tokens, self._read)
            self._prefix = self._detokenizer.decode(self._tokens[self._start :])
        self._held += new
        if place is not None and not self._stops.are_included:
            self._held = self._held[: max(len(self._held) - shown[place:].count(SHOWN), 0)]


def text_streams(detokenizer: Detokenizer, prompt: Sequence[int], options: GenerationOptions, *, streams: bool) -> list[TextStream]:
    """Return the text of each sequence of a request.

    Args:
        detokenizer: Of the model.
        prompt: The prompt's tokens.
        options: The request's options.
        streams: Whether the text is wanted before it is complete.
    """
    stops = StopStrings(options.stop_strings, options.include_stop_strings, options.stop_in_whole_text)
    return [TextStream(detokenizer, prompt, stops=stops, streams=streams) for _ in range(options.num_return_sequences)]
