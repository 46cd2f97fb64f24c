"""The base of the tasks whose models generate their answers token by token."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..generation.generation_options import DEFAULT_MAX_LENGTH, OPTIONS, GenerationOptions, asks_for_nothing, is_known, refusal
from ..generation.option_lists import MOST_STRING_LENGTH, NONE, STOP_STRINGS, parsed_parameters
from ..generation.option_names import overridden
from ..suggestions import LONGEST, suggestion
from ..types import UNWRITABLE, JsonValue, OptionTypeError, Setting, Tensor
from ._given_config import GENERATION_CONFIG, config_options, vllm_entries
from .base import ServedTask

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

NO_TRUNCATION = (False, None, "do_not_truncate")
"""Values of the pipeline's option ``truncation`` that do not truncate."""
TRUNCATIONS = (True, "longest_first", "only_first", *NO_TRUNCATION)
"""All of its values, for single texts."""


LEAST_NEW, MOST_NEW = ("min_new_tokens", "min_tokens"), ("max_new_tokens", "max_tokens")
"""Names of the limits of the new tokens in ``transformers`` and in vLLM."""
PIPELINE_NEW_TOKENS = 256
"""Default of ``max_new_tokens`` in the pipelines of ``transformers``."""
TOKENS = ("pad_token_id", "bos_token_id", "decoder_start_token_id")
"""Options that say which tokens the model knows."""


@dataclass(frozen=True, kw_only=True)
class GenerationTask(ServedTask):
    """A task whose model generates text.

    Attributes:
        generation: The checkpoint's defaults by the names of ``transformers.GenerationConfig``, as the pipeline applies them. Those
            that are the library's own defaults are left out.
        model_generation: The same as ``generate`` applies them, without the pipeline's own, and with ``pad_token_id``. They hold
            where a call has a ``generation_config``. None: they are not known.
        vocab_size: Tokens that the model scores; 0: not known yet.
        bos_token_id: Token that begins a text; None: there is none.
        pad_token_id: Token that fills rows; None: there is none.
        prefix: Text in front of every input.
        truncation: Whether an input that is too long is truncated. If false, it is refused.
    """

    generation: Mapping[str, object] = field(default_factory=dict)
    model_generation: Mapping[str, object] | None = None
    vocab_size: int = 0
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    prefix: str = ""
    truncation: bool = False

    options: ClassVar[Mapping[str, Setting]] = {
        "truncation": Setting(bool, help="Truncate text that is too long."),
        "stop_sequence": Setting(str, help="Text whose tokens end a sequence."),
        "pad_token_id": Setting(int, minimum=0, help="Token behind the shorter ones of several sequences of tokens."),
        **OPTIONS,
    }
    program: ClassVar[str] = "generate"
    """Module of the runtime that Triton runs."""
    streams: ClassVar[bool] = False
    """Whether the model can answer a request piece by piece. It is decoupled then, and takes one text a request."""
    request_only: ClassVar[frozenset[str]] = frozenset({"stop_sequence", "pad_token_id", *OPTIONS})
    client_options: ClassVar[tuple[str, ...]] = (
        "return_tensors",
        "return_text",
        "return_type",
        "clean_up_tokenization_spaces",
        GENERATION_CONFIG,
    )

    stop_sequence: str | None = None

    @cached_property
    def generation_options(self) -> GenerationOptions:
        """Return how a request is generated: by the checkpoint's defaults, or as :meth:`with_options` was told.

        Raises:
            ValueError: A default of the checkpoint is not supported.
        """
        return GenerationOptions.from_settings(self.generation, vocab_size=self.vocab_size)  # type: ignore[arg-type]

    def check_options(self) -> None:
        """Check that the defaults are supported."""
        _ = self.generation_options

    def with_options(self, given: Mapping[str, JsonValue]) -> Self:
        """Return the task with the parameters of a request in place of its defaults; see :attr:`generation_options`.

        Args:
            given: Parameters of a Triton request, by name; see :meth:`parsed`.

        Raises:
            ValueError: As for :meth:`with_values`; or a list is not JSON.
        """
        return self.with_values(self.parsed(given))

    def parsed(self, given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the options in the parameters of a Triton request, where lists and None are JSON. A text may be ``null`` itself.

        Raises:
            ValueError: A list is not JSON; the message names it.
        """
        names = self.own_options
        asked = parsed_parameters({name: value for name, value in given.items() if name not in names})
        nothing = {name: None for name in names if given.get(name) == NONE and not self.is_text(name)}
        return {**given, **nothing, **asked}

    def is_text(self, name: str) -> bool:
        """Return whether the value of one of :attr:`own_options` is a text, which no JSON stands for."""
        return self.options[name].kind is str and not self.options[name].choices

    def with_values(self, given: Mapping[str, JsonValue]) -> Self:
        """Return the task with the options of a request in place of its defaults.

        Args:
            given: Options by name. A string is no JSON here. None of one of :attr:`own_options` means that it is not given.

        Raises:
            ValueError: An option is unknown, not supported, of another kind, or not allowed. The message is for the client.
        """
        names = self.own_options
        nothing = {name for name in (*names, *TOKENS) if name in given and given[name] is None}
        own = {name: value for name, value in given.items() if name in names and name not in nothing}
        asked = {name: value for name, value in given.items() if name not in own and name not in nothing}
        for name, value in asked.items():
            if value is not None and not is_known(name):
                raise ValueError(f"option {name[:LONGEST]} is unknown or not supported{suggestion(name, self.options)}")
        chosen = replace(self, **{name: self.own_value(name, value) for name, value in own.items()})  # type: ignore[arg-type]
        if len(chosen.stop_sequence or "") > MOST_STRING_LENGTH:
            raise ValueError(f"option stop_sequence may have {MOST_STRING_LENGTH} characters at most")
        options = self.generation_options
        if asked:
            options = options.with_parameters(asked, vocab_size=self.vocab_size)
        vars(chosen)["generation_options"] = options
        return chosen

    def own_value(self, name: str, value: object) -> object:
        """Return the value of one of :attr:`own_options`, checked.

        Raises:
            ValueError: It has another kind, or is not allowed.
        """
        return self.options[name].check(name, value)

    @property
    def own_options(self) -> frozenset[str]:
        """Return the names of the options that say what the model reads; the others say how it generates."""
        return frozenset(self.options.keys() - OPTIONS.keys())

    def optional_inputs(self) -> tuple[Tensor, ...]:
        """Return the tensors that a request may leave out. Default: none."""
        return ()

    # -- the client -----------------------------------------------------------------------------------------------------------

    @property
    def call_options(self) -> tuple[str, ...]:
        """Return the names of the options that a pipeline call takes."""
        return (*self.options, *self.client_options)

    def takes(self, name: str) -> bool:
        """Return whether a pipeline call takes an option: also one of ``generate`` or vLLM that may only ask for nothing."""
        return name in self.call_options or is_known(name)

    def expand_options(
        self, defaults: Mapping[str, object], given: Mapping[str, object]
    ) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Replace ``generation_config`` by the options that it stands for. Explicit options win over it.

        As in the pipeline, that of a call takes the place of all options of generation that the client has.
        """
        if given.get(GENERATION_CONFIG) is not None:
            kept = {name: value for name, value in defaults.items() if name in self.own_options or name in self.client_options}
            return self._limited(_without_config(kept), self._expanded(given))
        if defaults.get(GENERATION_CONFIG) is not None:
            return self._limited({}, self._expanded(overridden(defaults, _without_config(given))))
        return self._limited(defaults, given)

    def _limited(
        self, defaults: Mapping[str, object], given: Mapping[str, object]
    ) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """Leave out the limits of the tokens that the pipeline ignores.

        A ``max_length`` of the client takes the place of the pipeline's own ``max_new_tokens``. Any other has no effect beside a
        default of ``max_new_tokens``, with a warning.
        """
        new = _new_tokens(defaults, self.generation.get("max_new_tokens"))
        if defaults.get("max_length") not in (None, DEFAULT_MAX_LENGTH) and new == PIPELINE_NEW_TOKENS:
            return {name: value for name, value in defaults.items() if name not in MOST_NEW}, given
        new = _new_tokens(given, new)
        has_length = any(options.get("max_length") is not None for options in (defaults, given))
        if not has_length or new is None or not self.generation.get("max_new_tokens"):
            return defaults, given
        message = f"max_length is ignored, as by transformers.pipeline, because max_new_tokens is {new}: give max_new_tokens"
        warnings.warn(message, UserWarning, stacklevel=2)
        return _without_length(defaults), _without_length(given)

    def joined_parameters(self, usual: Mapping[str, JsonValue], own: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Return the request parameters of a client with those of a call, which come first by whichever name."""
        return overridden(usual, own)

    def _expanded(self, options: Mapping[str, object]) -> dict[str, object]:
        if self.model_generation is None:
            raise ValueError(
                "option generation_config is not supported by this model: export it again, or give its entries as options"
            )
        if options.get("use_model_defaults") is not None:
            raise ValueError("option use_model_defaults is not supported together with generation_config: leave it out")
        tokens = {name: getattr(self, name) for name in TOKENS if hasattr(self, name)}
        rest = overridden(vllm_entries(options[GENERATION_CONFIG]), _without_config(options))
        return config_options(
            options[GENERATION_CONFIG],
            rest,
            served={**self.generation, **tokens},
            model={**tokens, "pad_token_id": None, **self.model_generation},
        )

    def sanitize_parameters(self, given: Mapping[str, object]) -> tuple[dict[str, JsonValue], dict[str, object]]:
        """Convert the options of a pipeline call to request parameters, and to what formats the answers.

        What is no option of the pipeline is one of ``generate``. The server has the tokenizer, so ``tokenizer`` has no effect.

        Raises:
            ValueError: An option is not supported, or does not go with another one.
        """
        options = {name: value for name, value in given.items() if name != "tokenizer"}
        shown = {name: options.pop(name) for name in self.client_options if name in options}
        presented = {name: value for name, value in options.items() if name in self.presentation_options}
        if (truncation := options.get("truncation")) is not None:
            if truncation not in TRUNCATIONS:
                raise ValueError(f"option truncation must be true, false or longest_first, not {truncation!r:.80}")
            options["truncation"] = truncation not in NO_TRUNCATION
        _warn_of_limits({name: value for name, value in options.items() if value is not None})
        return self.request_parameters(options), {**self.answer_format(shown), **presented}

    def answer_format(self, given: Mapping[str, object]) -> dict[str, object]:
        """Return the options of :meth:`format_answers` for those of :attr:`client_options` that a call has.

        Raises:
            ValueError: One is not supported, or does not go with another one.
        """
        found: dict[str, object] = {}
        if (clean := given.get("clean_up_tokenization_spaces")) is not None:
            found["clean_up_tokenization_spaces"] = bool(clean)
        return found

    def request_parameters(self, given: Mapping[str, object]) -> dict[str, JsonValue]:
        """Convert options to request parameters: lists as JSON, numbers as Python's own.

        None stays for an option of ``generate``, which it switches off. For the pipeline's own it has no effect, as there.

        Raises:
            OptionTypeError: A value cannot be a parameter.
            ValueError: An option is not supported.
        """
        found: dict[str, JsonValue] = {}
        for name, value in given.items():
            plain = value.item() if isinstance(value, np.generic) else value
            if name not in self.options and plain is not None and is_known(name):
                if asks_for_nothing(name, plain):
                    continue
                raise ValueError(refusal(name))
            kind = self.options[name].kind if name in self.options else None
            if kind is bool and isinstance(plain, int):
                plain = bool(plain)
            if name == "early_stopping" and isinstance(plain, str):
                plain = {"true": True, "false": False}.get(plain, plain)
            if name in STOP_STRINGS and (plain is None or isinstance(plain, str)):
                plain = [] if plain is None else [plain]  # else a text that is JSON would be parsed
            if isinstance(plain, np.ndarray | Sequence) and not isinstance(plain, str):
                plain = _json_list(name, plain)
            if plain is not None and not isinstance(plain, bool | int | float | str):
                raise OptionTypeError(f"option {name} is not supported with a value of type {type(plain).__name__}")
            if plain is not None or name in OPTIONS:
                found[name] = plain
        return found

    def sent_parameters(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """Return the request parameters as Triton takes them, which has no None."""
        return {name: NONE if value is None else value for name, value in given.items()}


def _without_config(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if name != GENERATION_CONFIG}


def _without_length(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if name != "max_length"}


def _new_tokens(options: Mapping[str, object], default: object) -> object:
    """Return the limit of the new tokens, by either name. None of the name of vLLM is no limit that was given."""
    if options.get("max_tokens") is not None:
        return options["max_tokens"]
    return options.get("max_new_tokens", default)


def _warn_of_limits(given: Mapping[str, object]) -> None:
    """Warn, as ``transformers`` does, of a minimum of new tokens that is more than their maximum, which holds."""
    least, most = (next((name for name in names if name in given), None) for names in (LEAST_NEW, MOST_NEW))
    if least is None or most is None:
        return
    low, high = given[least], given[most]
    if isinstance(low, int) and isinstance(high, int) and low > high:
        warnings.warn(f"{least} ({low}) is larger than {most} ({high}), which ends the answer", UserWarning, stacklevel=4)


def _json_list(name: str, value: object) -> str:
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False)
    except TypeError as error:
        raise OptionTypeError(f"option {name} must be a list of numbers or strings: {error}") from None
    except (ValueError, RecursionError):
        raise OptionTypeError(f"option {name} {UNWRITABLE}") from None


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is neither")


def return_type(kind: object, known: Sequence[str]) -> str:
    """Return the name of a member of the pipeline's ``ReturnType``, or of a string with that name.

    Raises:
        ValueError: It is another one.
    """
    name = getattr(kind, "name", kind)
    if name not in known:
        raise ValueError(f"option return_type must be one of {', '.join(known)}, not {kind!r:.80}")
    return str(name)
