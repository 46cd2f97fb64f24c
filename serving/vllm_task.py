"""Text generation as a client asks Triton's vLLM backend for it.

The backend makes vLLM's ``SamplingParams`` of the JSON in ``sampling_parameters`` (triton-inference-server/vllm_backend,
``src/utils/vllm_backend_utils.py``), which refuse an unknown name, and whose defaults are not those of the checkpoint: 16 tokens,
for example. So the client sends all of them. Their names and meanings are those of vLLM's ``SamplingParams``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.tasks.text_generation import TENSORS, TextGeneration
from serving.runtime.types import JsonValue

UNKNOWN = (
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "num_beams",
    "max_time",
)
"""Options of ``transformers`` that vLLM does not have."""
ALL_TOKENS = -1
"""Value of ``top_k`` with which vLLM keeps all tokens."""


@dataclass(frozen=True, kw_only=True)
class VllmTextGeneration(TextGeneration):
    """Serves text-generation by vLLM: there are no chats, and no token ids in an answer."""

    def parse_inputs(self, inputs: object) -> list[tuple[str, ...]]:
        """Take a text, or a list of texts.

        Raises:
            ValueError: It is a chat, which the backend does not take.
        """
        rows = super().parse_inputs(inputs)
        if any(len(row) > 1 for row in rows):
            raise ValueError(
                "vLLM takes no messages here: turn them into text with the checkpoint's tokenizer (apply_chat_template) before"
            )
        return rows

    def request_rows(self, rows: Sequence[tuple[str, ...]]) -> tuple[Sequence[tuple[str, ...]], dict[str, JsonValue]]:
        """Return the text of a row behind the checkpoint's prefix, which the server does not know."""
        return [(self.prefix + text,) for (text,) in rows], {}

    def sent_parameters(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return all parameters of vLLM's ``SamplingParams`` that a request needs.

        Raises:
            ValueError: vLLM does not have an option that was given.
        """
        chosen = self.with_options(given)  # type: ignore[arg-type]
        for field in fields(self):
            if (
                field.name in self.own_options
                and field.name != "pad_token_id"
                and getattr(chosen, field.name) != getattr(self, field.name)
            ):
                raise ValueError(f"option {field.name} is not supported by vLLM")
        return sampling_parameters(chosen.generation_options)

    def answer_format(self, given: Mapping[str, object]) -> dict[str, object]:
        """Return what an answer shows.

        Raises:
            ValueError: Token ids are asked for, or as for other models.
        """
        found = super().answer_format(given)
        if found.get("return_type") == TENSORS:
            raise ValueError("option return_tensors is not supported by vLLM, whose answers hold no token ids")
        return found


def sampling_parameters(options: GenerationOptions) -> dict[str, JsonValue]:
    """Return the parameters of vLLM that mean the same.

    Args:
        options: The options of a request.

    Raises:
        ValueError: vLLM does not have one of them.
    """
    neutral = GenerationOptions()
    for name in UNKNOWN:
        if getattr(options, name) != getattr(neutral, name):
            raise ValueError(f"option {name} is not supported by vLLM")
    if options.max_new_tokens is None:
        raise ValueError("option max_length is not supported by vLLM, which does not count the text: give max_new_tokens")
    if options.min_length > 0 and options.min_new_tokens is None:
        raise ValueError("option min_length is not supported by vLLM, which does not count the text: give min_new_tokens")
    found: dict[str, JsonValue] = {
        "max_tokens": options.max_new_tokens,
        "min_tokens": options.min_new_tokens or 0,
        "repetition_penalty": options.repetition_penalty,
        "n": options.num_return_sequences,
        "temperature": options.temperature if options.do_sample else 0.0,
        "ignore_eos": True,  # the tokens below are those of the request, and nothing else
        "stop_token_ids": list(options.eos_token_id),
        "include_stop_str_in_output": options.include_stop_strings,
    }
    if options.do_sample:
        found |= {"top_k": options.top_k or ALL_TOKENS, "top_p": options.top_p, "min_p": options.min_p or 0.0}
    if options.seed is not None:
        found["seed"] = options.seed
    return found | ({"stop": list(options.stop_strings)} if options.stop_strings else {})
