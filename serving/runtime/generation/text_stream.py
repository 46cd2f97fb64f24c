"""From tokens to text as it grows: what was given out never changes, and all of it together is what the tokenizer decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from .generation_options import GenerationOptions

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
CONTEXT_TOKENS, WINDOW_TOKENS = 8, 24
"""Tokens before the new ones that are decoded with them, as decoders look at neighbours; and the most decoded at a time."""


class Detokenizer:
    """What all texts of a model have in common.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.skipped = frozenset(token for token, entry in added.items() if entry.special)
        bytes_ = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self.bytes = frozenset(token for token in bytes_ if token is not None)
        """Tokens of one byte each. A decoder makes text of a whole run of them: one wrong byte changes the text of all."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode tokens, none of which is special."""
        return self._tokenizer.decode(tokens, skip_special_tokens=False) if tokens else ""

    def context(self, tokens: Sequence[int], end: int) -> int:
        """Return where to begin to decode what follows ``tokens[:end]``: not amid a run of bytes."""
        start = max(end - CONTEXT_TOKENS, 0)
        while start > 0 and tokens[start] in self.bytes:
            start -= 1
        return start


class TextStream:
    """The text of one sequence.

    All text together is ``decode(prompt + generated)`` without its first ``len(decode(prompt))`` characters, as
    ``transformers.pipeline`` cuts it (without ``clean_up_tokenization_spaces``, which is the client's affair), or ends at a stop
    string.

    Args:
        detokenizer: Of the model.
        prompt: The prompt's tokens.
        stop_strings: Strings that end the sequence.
        include_stop_strings: Let the text end with the token that completes a stop string, which may begin in the prompt, as in
            ``transformers``. If false, the text ends before the stop string.
        streams: Whether the text is wanted before it is complete.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        prompt: Sequence[int],
        *,
        stop_strings: Sequence[str] = (),
        include_stop_strings: bool = True,
        streams: bool = True,
    ) -> None:
        self._detokenizer, self._stops, self._includes = detokenizer, stop_strings, include_stop_strings
        self._longest_stop = max(map(len, stop_strings), default=0)
        self._follows = streams or bool(stop_strings)
        visible = [token for token in prompt if token not in detokenizer.skipped]
        self._tokens = visible[detokenizer.context(visible, len(visible)) :]
        self._start, self._read = 0, len(self._tokens)
        self._prefix = detokenizer.decode(self._tokens)
        self._searched = self._prefix[1 - self._longest_stop :] if include_stop_strings and self._longest_stop > 1 else ""
        self._held = ""  # text that may become part of a stop string
        self._stopped = False

    def push(self, token: int) -> bool:
        """Append a token; return whether it completes a stop string."""
        if token in self._detokenizer.skipped or self._stopped:
            return self._stopped
        self._tokens.append(token)
        if self._stops or (self._follows and token not in self._detokenizer.bytes):
            self._follow(final=False)
        return self._stopped

    def take(self) -> str:
        """Return the text that has become certain since the last call."""
        certain, self._held = self._split_held()
        return certain

    def finish(self) -> str:
        """Return the rest of the text. No token may follow."""
        if not self._stopped:
            self._follow(final=True)
        rest, self._held = self._held, ""
        return rest

    def _follow(self, *, final: bool) -> None:
        """Decode what was not decoded yet, unless it ends amid a character."""
        text = self._detokenizer.decode(self._tokens[self._start :])
        new = text[len(self._prefix) :]
        place = self._stop_in(new)
        self._stopped = place is not None
        unfinished = text.endswith(UNFINISHED) or (self._tokens and self._tokens[-1] in self._detokenizer.bytes)
        if unfinished and not (final or self._stopped):
            return
        self._read, self._prefix = len(self._tokens), text
        if self._read - self._start > WINDOW_TOKENS:
            self._start = self._detokenizer.context(self._tokens, self._read)
            self._prefix = self._detokenizer.decode(self._tokens[self._start :])
        self._held += new
        if place is not None and not self._includes:
            self._held = self._held[: len(self._held) - len(self._searched) - len(new) + place]
        self._searched = (self._searched + new)[1 - self._longest_stop :] if self._longest_stop > 1 else ""

    def _stop_in(self, new: str) -> int | None:
        """Return where in the searched and the new text the first stop string begins that ends in the new text."""
        text, before = self._searched + new, len(self._searched)
        found = (text.find(stop, max(before - len(stop) + 1, 0)) for stop in self._stops)
        return min((place for place in found if place >= 0), default=None)

    def _split_held(self) -> tuple[str, str]:
        """Split the text that was not given out into what is certain, and what may begin a stop string."""
        if self._includes or self._stopped:
            return self._held, ""
        for length in range(min(self._longest_stop - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return self._held[:-length], self._held[-length:]
        return self._held, ""


def text_streams(detokenizer: Detokenizer, prompt: Sequence[int], options: GenerationOptions, *, streams: bool) -> list[TextStream]:
    """Return the text of each sequence of a request.

    Args:
        detokenizer: Of the model.
        prompt: The prompt's tokens.
        options: The request's options.
        streams: Whether the text is wanted before it is complete.
    """
    return [
        TextStream(
            detokenizer,
            prompt,
            stop_strings=options.stop_strings,
            include_stop_strings=options.include_stop_strings,
            streams=streams,
        )
        for _ in range(options.num_return_sequences)
    ]
