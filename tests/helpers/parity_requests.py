"""Requests of mixed lengths and options that transformers and the server both answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LENGTHS = (1, 2, 3, 5, 8, 13, 20, 34, 55, 90, 140, 190)
"""Tokens of prompts, special ones not counted."""
STREAMED = ("grpc stream", "http generate_stream", "grpc whole", "http generate")
"""Ways to ask a model of text-generation: a gRPC stream, the endpoint ``generate_stream``, and both for a whole answer."""
WHOLE = ("grpc whole", "http generate")
INFER = ("grpc infer", "http infer")
"""Ways to ask an encoder-decoder."""


@dataclass(frozen=True, kw_only=True)
class ParityRequest:
    """A request.

    Attributes:
        text: What is sent: a text, or the message of a user.
        options: Options by the names of transformers.
        way: How it is sent.
        chat: Whether the text is the message of a chat.
        as_parameters: Whether options are parameters of the Triton request; else they are JSON in ``sampling_parameters``.
    """

    text: str
    options: Mapping[str, Any]
    way: str
    chat: bool = False
    as_parameters: bool = False


def _greedy(end: Sequence[int], tokens: Sequence[int], bytes_: Sequence[int]) -> list[dict[str, Any]]:
    stops: dict[str, Any] = {"stop_strings": ["th", "w1", ", ", "x"]}
    one, two, three = tokens[:3]
    return [
        {},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"eos_token_id": [*end]},
        {"eos_token_id": [*end], "min_new_tokens": 4},
        {"bad_words_ids": [[one], [two, three], *([token] for token in tokens[3:])]},
        {"suppress_tokens": [*tokens]},
        {"begin_suppress_tokens": [*tokens[::2]]},
        {"forced_eos_token_id": end[0]},
        {"forced_bos_token_id": two},
        {"encoder_no_repeat_ngram_size": 2},
        stops | ({"suppress_tokens": [*bytes_]} if bytes_ else {}),
        {"eos_token_id": [*end], "min_new_tokens": 3, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
        {"eos_token_id": one},
    ]


def _beams(end: Sequence[int], tokens: Sequence[int]) -> list[dict[str, Any]]:
    one, two, three = tokens[:3]
    return [
        {"num_beams": 2},
        {"num_beams": 4, "num_return_sequences": 2, "early_stopping": True, "eos_token_id": [*end]},
        {"num_beams": 3, "no_repeat_ngram_size": 2, "eos_token_id": [*end]},
        {"num_beams": 4, "length_penalty": 2.0, "eos_token_id": [*end], "min_new_tokens": 3},
        {"num_beams": 4, "repetition_penalty": 1.3, "early_stopping": "never", "length_penalty": 0.5, "eos_token_id": [*end]},
        {"num_beams": 2, "bad_words_ids": [[one], [two, three]], "suppress_tokens": [*tokens[3:]], "num_return_sequences": 2},
        {"num_beams": 3, "forced_bos_token_id": two, "forced_eos_token_id": end[0]},
    ]


def parity_requests(
    count: int,
    make_text: Callable[[int], str],
    *,
    end: Sequence[int],
    tokens: Sequence[int],
    bytes_: Sequence[int] = (),
    most_new: int,
    streams: bool,
    chat: bool = False,
    seed: int = 0,
) -> list[ParityRequest]:
    """Make requests, two of three greedy, one with beams.

    Args:
        count: Number of requests.
        make_text: Makes a text of a number of tokens.
        end: Tokens that end sequences where a request has a list of them; transformers pads with the first one.
        tokens: Three tokens or more that requests forbid or force.
        bytes_: Tokens of single bytes that are characters. They are forbidden where there are stop strings, as models write the
            pieces that these characters have: among bytes that are no character, transformers finds a stop string in a token whose
            text does not show it.
        most_new: Most new tokens.
        streams: Whether the model is one of text-generation.
        chat: Whether every other text is the message of a chat.
        seed: Of the choices.
    """
    choose = random.Random(seed)
    greedy, beams, made = _greedy(end, tokens, bytes_), _beams(end, tokens), []
    for number in range(count):
        turn, has_beams = divmod(number, 3)[0], number % 3 == 2
        own = beams[turn % len(beams)] if has_beams else greedy[(number - turn) % len(greedy)]
        ways = INFER if not streams else WHOLE if has_beams else STREAMED
        options = {
            "do_sample": False,
            "num_beams": 1,
            "max_new_tokens": choose.randint(max(own.get("min_new_tokens", 1), 2), most_new),
        }
        made.append(
            ParityRequest(
                text=make_text(choose.choice(LENGTHS)),
                options=options | own,
                way=choose.choice(ways),
                chat=chat and number % 2 == 0,
                as_parameters=choose.random() < 0.5,
            )
        )
    choose.shuffle(made)
    return made
