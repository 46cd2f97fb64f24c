"""Sources of an encoder-decoder: the texts that it summarizes or translates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.generation.tokenized_texts import TokenizedTexts
from serving.bundle import Bundle
from serving.runtime.generation.source_reader import SourceReader
from serving.runtime.tasks._text2text import Text2TextTask
from serving.runtime.types import JsonValue


class SourceTexts(TokenizedTexts):
    """Tokenizes sources, and decodes answers, as the server does.

    Args:
        bundle: The bundle of an encoder-decoder, with the length at which sources are truncated.
        options: Options of every request.
    """

    def __init__(self, bundle: Bundle, options: Mapping[str, JsonValue]) -> None:
        assert isinstance(bundle.task, Text2TextTask)
        self.task = bundle.task.with_options(options)
        split = bundle.manifest.split_special_tokens
        self._reader = SourceReader(bundle.folder, max_length=bundle.max_length, split_special_tokens=split)
        self.tokenizer = self._reader.tokenizer

    def tokens(self, text: str) -> list[int]:
        """Tokenize a source.

        Raises:
            ValueError: It has no tokens.
        """
        (found,) = self._reader.read([text], self.task).tokens
        return list(map(int, found))

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode an answer."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text
