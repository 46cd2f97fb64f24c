"""Options whose values are lists: tokens, sequences of tokens, strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..types import JsonValue, OptionTypeError, parse_client_json, require_text, shown

MOST_STRINGS, MOST_STRING_LENGTH = 16, 256
"""Most stop strings of a request, and the characters of the longest one: each is searched for after each token."""
MOST_TOKEN_LISTS = 1024
"""Most entries of a list of token ids: all are read at each token."""
MOST_WORD_TOKENS = 32
"""Most tokens of one entry of ``bad_words_ids``: they are compared with what was read last at each token."""
TOKEN_LISTS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
STOP_STRINGS = ("stop_strings", "stop")
"""Options that are texts."""
LIST_OPTIONS = (*TOKEN_LISTS, "bad_words_ids", "stop_token_ids", *STOP_STRINGS)
"""Options that are lists. As a parameter of a Triton request, which cannot be a list, they are JSON."""
NONE = "null"
"""Stands for None as a parameter of a Triton request: JSON."""


def token_ids(name: str, value: JsonValue) -> tuple[int, ...]:
    """Return one token id, or a list of them, as a tuple.

    Raises:
        ValueError: It is something else.
    """
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(listed) > MOST_TOKEN_LISTS:
        raise ValueError(f"option {name} has {len(listed)} tokens, but may have {MOST_TOKEN_LISTS}")
    if not all(type(token) is int and token >= 0 for token in listed):
        raise OptionTypeError(f"option {name} must be a token id or a list of token ids, not {shown(value)}")
    return tuple(listed)  # type: ignore[arg-type]


def strings(name: str, value: JsonValue) -> tuple[str, ...]:
    """Return one string, or a list of them, as a tuple.

    Raises:
        ValueError: It is something else.
    """
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, Sequence) or not all(isinstance(one, str) and one for one in listed):
        raise OptionTypeError(f"option {name} must be a string or a list of strings, none of them empty, not {shown(value)}")
    for one in listed:
        require_text(f"option {name}", one)  # type: ignore[arg-type]
    if len(listed) > MOST_STRINGS or any(len(one) > MOST_STRING_LENGTH for one in listed):  # type: ignore[arg-type]
        raise ValueError(f"option {name} may have {MOST_STRINGS} strings of {MOST_STRING_LENGTH} characters at most")
    return tuple(listed)  # type: ignore[arg-type]


def words(name: str, value: JsonValue) -> tuple[tuple[int, ...], ...]:
    """Return a list of lists of token ids as tuples.

    Raises:
        ValueError: It is something else.
    """
    listed = value if isinstance(value, list | tuple) else [value]
    lengths = [len(word) if isinstance(word, list | tuple) else 0 for word in listed]
    if listed is not value or 0 in lengths:
        raise OptionTypeError(f"option {name} must be a list of lists of token ids, none of them empty, not {shown(value)}")
    if len(listed) > MOST_TOKEN_LISTS:
        raise ValueError(f"option {name} has {len(listed)} entries, but may have {MOST_TOKEN_LISTS}")
    if (longest := max(lengths, default=0)) > MOST_WORD_TOKENS:
        raise ValueError(f"option {name} has an entry of {longest} tokens, but each may have {MOST_WORD_TOKENS}")
    return tuple(token_ids(name, word) for word in listed)


def require_tokens(name: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Check that a model has the tokens that an option names.

    Raises:
        ValueError: It does not.
    """
    for token in tokens:
        if token >= vocab_size:
            raise ValueError(f"option {name} names token {shown(token)}, but the model has tokens 0 to {vocab_size - 1}")


def flat(value: object) -> list[int]:
    """Return the tokens of an option: of one token, or of lists of any depth; None has none."""
    if isinstance(value, tuple):
        return [token for one in value for token in flat(one)]
    return [] if value is None else [value]  # type: ignore[list-item]


def parsed_parameters(parameters: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Parse the lists, and ``null``, among the parameters of a Triton request: both are JSON in a string.

    Args:
        parameters: The parameters. A stop string that is no list in JSON stands for itself.

    Raises:
        ValueError: A list of tokens is not JSON; the message names it.
    """
    return {name: _parsed(name, value) for name, value in parameters.items()}


def _parsed(name: str, value: JsonValue) -> JsonValue:
    if not isinstance(value, str):
        return value
    if name in STOP_STRINGS:
        found = _json(value)
        return found if isinstance(found, list) else value
    if value == NONE or name not in LIST_OPTIONS:
        return None if value == NONE else value
    found = _json(value)
    if not isinstance(found, list | int):
        raise OptionTypeError(f"option {name} must be a list in JSON, not {shown(value)}")
    return found


def _json(text: str) -> JsonValue:
    try:
        found: JsonValue = parse_client_json("", text)
    except ValueError:
        return None
    return found
