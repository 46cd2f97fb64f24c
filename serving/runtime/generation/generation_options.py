"""The options of one request, by their names in ``transformers.generate`` and in vLLM, checked one by one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..types import JsonValue, OptionTypeError, Setting, shown
from .bad_words import NoBadWords
from .library_defaults import ARGUMENTS, INSTEAD, LIBRARY_DEFAULTS, WITHOUT_EFFECT
from .option_lists import TOKEN_LISTS, flat, require_tokens, strings, token_ids, words
from .option_names import ALIASES, canonical, names_of_vllm

DEFAULT_MAX_LENGTH = 20
"""Default of ``transformers`` for ``max_length``. Where nobody changed it, the prompt does not count."""
MOST_SEQUENCES = 64
"""Most beams, or answers, that a request may ask for; the slots of a model usually allow fewer."""
MOST_CANDIDATES = 512
"""Most candidates of a step of beam search, which are sorted: each beam has one, and one for each token that ends a sequence."""
MOST_NGRAM = 64
"""Largest size of n-grams that are not repeated: what was read is searched for the last ones at each token."""
MOST_TOKENS = 10**9
"""Largest limit of tokens; more is a mistake, whatever the model holds."""

_SETTINGS: dict[str, Setting] = {
    "max_new_tokens": Setting(int, minimum=1, maximum=MOST_TOKENS),
    "max_length": Setting(int, minimum=1, maximum=MOST_TOKENS),
    "min_new_tokens": Setting(int, minimum=0, maximum=MOST_TOKENS),
    "min_length": Setting(int, minimum=0, maximum=MOST_TOKENS),
    "max_time": Setting(float, minimum=0),
    "do_sample": Setting(bool),
    "temperature": Setting(float, minimum=0, maximum=1e6),
    "top_k": Setting(int, minimum=-1),
    "top_p": Setting(float, minimum=0, maximum=1),
    "min_p": Setting(float, minimum=0, maximum=1),
    "seed": Setting(int, minimum=0, maximum=2**64 - 1),
    "repetition_penalty": Setting(float, minimum=1e-6, maximum=1e6),
    "no_repeat_ngram_size": Setting(int, minimum=0, maximum=MOST_NGRAM),
    "encoder_no_repeat_ngram_size": Setting(int, minimum=0, maximum=MOST_NGRAM),
    "forced_bos_token_id": Setting(int, minimum=0),
    "include_stop_strings": Setting(bool),
    "num_beams": Setting(int, minimum=1, maximum=MOST_SEQUENCES),
    "length_penalty": Setting(float, minimum=-1e6, maximum=1e6),
    "renormalize_logits": Setting(bool),
    "num_return_sequences": Setting(int, minimum=1, maximum=MOST_SEQUENCES),
}
JSON_OPTIONS: dict[str, str] = {
    "eos_token_id": "Token, or tokens, that end a sequence.",
    "forced_eos_token_id": "Token, or tokens, that end a sequence which reaches its maximum length.",
    "suppress_tokens": "Tokens that are never generated.",
    "begin_suppress_tokens": "Tokens that are not generated first.",
    "bad_words_ids": "Lists of tokens that are never generated in a row.",
    "stop_strings": "Texts that end a sequence.",
    "early_stopping": 'When beams end: true, false or "never".',
    "stop": "Name of vLLM for stop_strings; the text then ends before the string.",
    "stop_token_ids": "Name of vLLM for further tokens that end a sequence.",
}
"""Options whose values have several types, and what they mean."""
OPTIONS: dict[str, Setting] = {
    **_SETTINGS,
    **{name: Setting(str, help=f"{meaning} JSON.") for name, meaning in JSON_OPTIONS.items()},
    "ignore_eos": Setting(bool, help="Do not end at the end-of-sequence token."),
    **{alias: _SETTINGS[name] for alias, name in ALIASES.items()},
}
"""All options by name, as a Triton request may have them."""
LOGPROBS = "logprobs"
"""Option of vLLM: how many log probabilities an answer has of each token. 0 asks for that of the token itself, false for none."""
NEUTRAL: dict[str, tuple[JsonValue, ...]] = {
    "guidance_scale": (1.0,),
    "penalty_alpha": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "best_of": (1,),
    "use_beam_search": (False,),
    LOGPROBS: (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "priority": (0,),
    "output_logits": (False,),
}
"""Options that are not supported, with values that ask for nothing. None and those of LIBRARY_DEFAULTS ask for nothing too."""


@dataclass(frozen=True)
class GenerationOptions:
    """How one request is generated. The names and meanings are those of ``transformers.GenerationConfig``.

    ``top_k`` 0 keeps all tokens. ``max_length`` and ``min_length`` count the prompt; ``max_new_tokens`` and ``min_new_tokens``,
    which do not, come first where both are set.

    Attributes:
        max_time: Seconds after which the answer ends with what there is; None: no limit.
        seed: Seed of the samples; None: another one each time.
        stop_strings: Strings that end a sequence. The text ends with the token that completes one of them, as in ``transformers``,
            or before the string if ``include_stop_strings`` is false, as in vLLM.
        stop_in_whole_text: Whether stop strings are searched for in the whole text, with the prompt and the special tokens, as
            ``transformers`` does, or in the text of the answer, as vLLM does (``stop``).
        limit_requested: Whether the request itself says how many tokens it wants: they must fit. A default is cut to what fits.
        client_names: The names that the request used, by the names here, where they differ: messages name what the client wrote.
    """

    max_new_tokens: int | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    min_new_tokens: int | None = None
    min_length: int = 0
    max_time: float | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    eos_token_id: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    include_stop_strings: bool = True
    stop_in_whole_text: bool = True
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize_logits: bool = False
    num_return_sequences: int = 1
    limit_requested: bool = False
    client_names: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def from_settings(cls, settings: Mapping[str, JsonValue], *, vocab_size: int) -> GenerationOptions:
        """Return the defaults of a model.

        Args:
            settings: Options by the names of ``transformers``, as the model's ``generation_config.json`` and the pipeline's own
                defaults make them.
            vocab_size: Tokens of the model.

        Raises:
            ValueError: An option is invalid or not supported.
        """
        given = cls().with_parameters(settings, vocab_size=vocab_size)
        return dataclasses.replace(given, limit_requested=False)

    def with_parameters(self, parameters: Mapping[str, JsonValue], *, vocab_size: int) -> GenerationOptions:
        """Return these options, changed by what a request asks for.

        Args:
            parameters: Options by the names of ``transformers`` or vLLM. None switches an option of ``transformers`` off, as there;
                for ``max_length`` and the names of vLLM it means that nothing was given.
            vocab_size: Tokens of the model.

        Raises:
            ValueError: An option is unknown, not supported, or has a wrong value; the message names it.
        """
        given, names = canonical(parameters), names_of_vllm(parameters)
        changes: dict[str, object] = self._end_tokens(given, vocab_size)
        for name, value in given.items():
            changes.update({name: None} if value is None else _change(name, value, names.get(name, name)))
        if "max_length" in changes and "max_new_tokens" not in changes:
            changes["max_new_tokens"] = None  # what the request says comes before the model's default
        if changes.get("temperature") == 0 and not changes.get("do_sample"):
            changes |= {"temperature": self.temperature, "do_sample": False}  # as vLLM: no randomness
        requested = any(changes.get(name) is not None for name in ("max_length", "max_new_tokens"))
        changed = dataclasses.replace(self, **changes, limit_requested=requested, client_names=names)  # type: ignore[arg-type]
        if changed.num_beams > 1 and parameters.get("length_penalty", changed.length_penalty) is None:
            raise OptionTypeError("option length_penalty must be a number where num_beams is more than 1, not null")
        changed._check(vocab_size)
        return changed

    def behind_prefix(self, length: int, given: Mapping[str, JsonValue]) -> GenerationOptions:
        """Return these options for a prompt with a prefix, whose tokens count neither for ``max_length`` nor ``min_length``.

        As in ``TextGenerationPipeline``, they do count where the request has ``max_new_tokens`` or ``min_new_tokens`` beside the
        length, and for a ``min_length`` that the request does not have.

        Args:
            length: Tokens of the prefix.
            given: The options of the request, by either name.
        """
        if not length:
            return self
        names = {ALIASES.get(name, name) for name in given}
        changes = {} if "max_new_tokens" in names else {"max_length": self.max_length + length}
        if given.get("min_length") is not None and "min_new_tokens" not in names:
            changes["min_length"] = self.min_length + length
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def client_name(self, name: str) -> str:
        """Return the name of an option that the request used, for messages."""
        return self.client_names.get(name, name)

    def _end_tokens(self, given: dict[str, JsonValue], vocab_size: int) -> dict[str, object]:
        """Take out of ``given`` what says which tokens end a sequence; return the field that it sets."""
        names = [name for name in ("eos_token_id", "ignore_eos", "stop_token_ids") if name in given]
        found = {name: given.pop(name) for name in names}
        end = token_ids("eos_token_id", found["eos_token_id"]) if "eos_token_id" in found else self.eos_token_id
        if Setting(bool).check("ignore_eos", found.get("ignore_eos", False)):
            end = ()
        further = token_ids("stop_token_ids", found.get("stop_token_ids", []))
        require_tokens("stop_token_ids", further, vocab_size)
        end += further
        return {"eos_token_id": tuple(dict.fromkeys(end))} if names else {}

    def ending_at(self, tokens: Sequence[int], *, vocab_size: int) -> GenerationOptions:
        """Return these options with other tokens that end a sequence: those of ``stop_sequence``.

        Raises:
            ValueError: There are too many for beams, or the model does not have one.
        """
        names = {**self.client_names, "eos_token_id": "stop_sequence"}
        changed = dataclasses.replace(self, eos_token_id=tuple(dict.fromkeys(tokens)), client_names=names)
        changed._check(vocab_size)
        return changed

    def _check(self, vocab_size: int) -> None:
        """Check what options mean together, and that all tokens exist.

        Raises:
            ValueError: Something is wrong; the message names the option.
        """
        if self.do_sample and self.temperature == 0:
            raise ValueError("option temperature must be more than 0 where do_sample is true")
        if self.num_beams > 1 and self.do_sample:
            raise ValueError(
                "option num_beams of more than 1 is not supported with do_sample: give do_sample=false, or num_beams=1 to sample"
            )
        count = self.client_name("num_return_sequences")
        if self.num_beams == 1 and self.num_return_sequences > 1 and not self.do_sample:
            raise ValueError(f"option {count} of more than 1 needs do_sample or num_beams: without them all are equal")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(f"option {count} must be at most num_beams, {self.num_beams}")
        if self.num_beams > 1 and self.stop_strings:
            raise ValueError(f"option {self.client_name('stop_strings')} is not supported with num_beams of more than 1")
        if self.num_beams > 1 and len(self.eos_token_id) > (most := MOST_CANDIDATES // self.num_beams - 1):
            raise ValueError(f"with num_beams of {self.num_beams}, at most {most} tokens may end a sequence")
        for name in (*TOKEN_LISTS, "bad_words_ids", "forced_bos_token_id"):
            require_tokens(self.client_name(name), flat(getattr(self, name)), vocab_size)

    @cached_property
    def no_bad_words(self) -> NoBadWords | None:
        """Return what forbids :attr:`bad_words_ids`, but no token that ends a sequence. All rows of a request share it."""
        ends = {(token,) for token in self.eos_token_id}
        words = [word for word in self.bad_words_ids if word not in ends]
        return NoBadWords(words) if words else None

    def prompt_room(self, *, capacity: int) -> int:
        """Return the most tokens of a prompt that is truncated: the answer fits behind it.

        An answer of ``max_new_tokens`` fits whole if the request asks for it. A default takes half of the capacity at most. Where
        ``max_length`` counts the prompt, the answer has half of it.

        Args:
            capacity: Tokens that the cache of a row holds.

        Raises:
            ValueError: The answer that the request asks for leaves no room.
        """
        if self.max_new_tokens is None and not self._has_library_length:
            total = min(self.max_length, capacity)
            return total - total // 2
        new = self.max_length if self.max_new_tokens is None else self.max_new_tokens
        if not self.limit_requested:
            return capacity - min(new, capacity // 2)
        if new >= capacity:
            raise ValueError(
                f"option {self.client_name('max_new_tokens')} of {new} leaves no room for a prompt: "
                f"this model holds {capacity} tokens, so ask for fewer"
            )
        return capacity - new

    @property
    def _has_library_length(self) -> bool:
        """Return whether ``max_length`` is the default of ``transformers``, which does not count the prompt."""
        return self.max_length == DEFAULT_MAX_LENGTH and not self.limit_requested

    def max_total_length(self, prompt_length: int, *, capacity: int) -> int:
        """Return the most tokens of the whole sequence, prompt included.

        Args:
            prompt_length: Tokens of the prompt (of an encoder-decoder: the decoder's).
            capacity: Tokens that the cache of a row holds.

        Raises:
            ValueError: The prompt leaves no room, or less than the request asks for.
        """
        if prompt_length >= capacity:
            raise ValueError(
                f"the prompt has {prompt_length} tokens, but this model holds {capacity} with the answer: send a shorter prompt"
            )
        if self.max_new_tokens is not None:
            wanted, name = prompt_length + self.max_new_tokens, "max_new_tokens"
        else:
            wanted, name = self.max_length + (prompt_length if self._has_library_length else 0), "max_length"
        if wanted <= prompt_length:
            raise ValueError(f"option max_length is {self.max_length}, but the prompt alone has {prompt_length} tokens")
        if wanted > capacity and self.limit_requested:
            room = capacity - prompt_length
            raise ValueError(
                f"option {self.client_name(name)} asks for {wanted - prompt_length} tokens after a prompt of {prompt_length}, "
                f"but this model holds {capacity}: ask for {room} at most"
            )
        return min(wanted, capacity)


def _change(name: str, value: JsonValue, client_name: str) -> dict[str, object]:
    """Check one option; return the fields that it sets.

    Args:
        name: Its name in ``transformers``; ``stop``.
        value: Its value.
        client_name: The name that the request used.

    Raises:
        ValueError: It is unknown, not supported, or has a wrong value.
    """
    if name in _SETTINGS:
        checked = _SETTINGS[name].check(client_name, value)
        return {name: 0 if name == "top_k" and checked == -1 else checked}
    if name in TOKEN_LISTS:
        return {name: token_ids(name, value)}
    if name == "bad_words_ids":
        return {name: words(name, value)}
    if name == "early_stopping" and (isinstance(value, bool) or value == "never"):
        return {name: value}
    if name in ("stop_strings", "stop"):
        of_library = name == "stop_strings"
        return {"stop_strings": strings(name, value), "include_stop_strings": of_library, "stop_in_whole_text": of_library}
    if name == "early_stopping":
        raise OptionTypeError(f'option {name} must be true, false or "never", not {shown(value)}')
    if asks_for_nothing(name, value):
        return {}
    raise ValueError(refusal(name) if is_known(name) else f"option {name[:80]} is unknown or not supported")


def check_option(name: str, value: JsonValue) -> None:
    """Check one option by itself. None of any is allowed.

    Raises:
        ValueError: It is unknown, not supported, or has a wrong value.
    """
    if value is not None:
        _change(name, value, name)


def is_known(name: str) -> bool:
    """Return whether there is an option of this name in ``transformers.generate`` or vLLM, supported or not."""
    return name in OPTIONS or name in NEUTRAL or name in LIBRARY_DEFAULTS or name in WITHOUT_EFFECT or name in ARGUMENTS


def asks_for_nothing(name: str, value: object) -> bool:
    """Return whether an option that is not supported changes no answer with this value."""
    if name == LOGPROBS:  # 0 asks vLLM for the probability of the chosen token
        return value is False
    return name in WITHOUT_EFFECT or any(type(value) in (type(one), int) and value == one for one in neutral_values(name))


def refusal(name: str) -> str:
    """Say that an option is not supported, and what to do."""
    neutral = neutral_values(name)
    instead = INSTEAD.get(name, f"only {json.dumps(neutral[0])} is accepted, which asks for nothing" if neutral else "")
    return f"option {name} is not supported{instead and f': {instead}'}"


def neutral_values(name: str) -> tuple[JsonValue, ...]:
    """Return the values of an option that is not supported which ask for nothing, besides None."""
    default = LIBRARY_DEFAULTS.get(name)
    return (*NEUTRAL.get(name, ()), *(() if default is None else (default,)))
