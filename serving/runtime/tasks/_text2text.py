"""The base of the tasks of encoder-decoders: a text → one or several generated texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..types import Arrays, Flags, Integers, JsonValue, OptionTypeError, Setting, Tensor
from ._clean_up import cleaned_up
from ._generation import GenerationTask, return_type

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11


BEGINNING = ("bos_token_id", "decoder_start_token_id")
"""Options that say with which token something begins."""


@dataclass(frozen=True, kw_only=True)
class Text2TextTask(GenerationTask):
    """A task whose answers are those of ``transformers``' ``Text2TextGenerationPipeline``.

    Attributes:
        decoder_start_token_id: Token with which the decoder begins.
        stop_sequence: Text whose first token ends a sequence. None: the end-of-sequence tokens do.
    """

    decoder_start_token_id: int = 0

    program: ClassVar[str] = "rewrite"
    answer_key: ClassVar[str]
    """Key of an answer's text."""
    options: ClassVar[Mapping[str, Setting]] = {
        "decoder_start_token_id": Setting(int, minimum=0, help="Token with which the decoder begins: only the model's own."),
        "bos_token_id": Setting(int, minimum=0, help="Token that begins a text: only the model's own."),
        **GenerationTask.options,
    }
    request_only: ClassVar[frozenset[str]] = GenerationTask.request_only | {*BEGINNING}
    text_keys: ClassVar[tuple[str, ...]] = ("text",)

    def with_values(self, given: Mapping[str, JsonValue]) -> Self:
        """Return the task with the options of a request in place of its defaults.

        Raises:
            ValueError: As in the base class; or ``max_length`` is None, which the pipelines of these tasks refuse.
        """
        if given.get("max_length", 0) is None:
            raise OptionTypeError("option max_length must be a whole number, not null")
        return super().with_values(given)

    def own_value(self, name: str, value: object) -> object:
        """Return the value of an option that says what the model reads.

        Raises:
            ValueError: As in the base class; or the model begins with another token.
        """
        checked = super().own_value(name, value)
        if name in BEGINNING and checked != (own := getattr(self, name)):
            raise ValueError(f"option {name} is not supported with {checked}: only the model's own is, {own}")
        return checked

    def sent_parameters(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return the request parameters as Triton takes them.

        Raises:
            ValueError: A whole number does not fit into one; ``seed`` may otherwise be larger.
        """
        for name, value in given.items():
            if type(value) is int:
                Setting(int).check(name, value)
        return super().sent_parameters(given)

    def outputs(self) -> tuple[Tensor, ...]:
        """Return one text per sequence of a row: one, unless the request says ``num_return_sequences``."""
        return (Tensor("GENERATED", "TYPE_STRING", (-1,)),)

    def source_tokens(self, tokens: Integers, special: Flags) -> Integers:  # noqa: ARG002 - most models have one language
        """Return what the encoder reads of a text. Default: its tokens.

        Args:
            tokens: INT64 ``[length]``, as ``tokenizer.json`` makes them.
            special: BOOL ``[length]``, which of them the tokenizer added.
        """
        return tokens

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take a string, or a list of strings.

        Raises:
            TypeError: The inputs have another form.
        """
        rows: list[tuple[str, ...]] = []
        for row in inputs if isinstance(inputs, list) else [inputs]:
            if not isinstance(row, str):
                raise TypeError(f"each input must be a string, not {row!r:.80}")
            rows.append((row,))
        return rows

    def answer_format(self, given: Mapping[str, object]) -> dict[str, object]:
        """Check what an answer shows: here that is always the text. As in the pipeline, ``return_text`` has no effect.

        Raises:
            ValueError: The tokens are asked for.
        """
        kind = given.get("return_type")
        wants_tensors = return_type(kind, ("TEXT", "TENSORS")) == "TENSORS" if kind is not None else given.get("return_tensors")
        if wants_tensors:
            raise ValueError(f"option return_tensors is not supported by {self.name}: the server returns text")
        return super().answer_format(given)

    def format_answers(self, answers: Arrays, **options: object) -> Sequence[object]:
        """Return ``[{"…_text"}, …]`` per row, one for each sequence."""
        clean = options.get("clean_up_tokenization_spaces", False)
        rows = [[text.decode() for text in row] for row in answers["GENERATED"].tolist()]
        return [[{self.answer_key: cleaned_up(text) if clean else text} for text in row] for row in rows]

    def format_result(self, inputs: object, answers: Sequence[object], options: Mapping[str, object]) -> object:  # noqa: ARG002
        """Return the sequences of a text; for a list, one answer per text where each has one sequence, else lists of them."""
        if not isinstance(inputs, list):
            return answers[0]
        rows = [row for row in answers if isinstance(row, list)]
        return [row[0] for row in rows] if all(len(row) == 1 for row in rows) else rows
