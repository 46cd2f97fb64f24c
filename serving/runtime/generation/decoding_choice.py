"""Which way of decoding a request needs."""

from __future__ import annotations

from ..types import Integers
from .beam_search import BeamSearch
from .decoding import Decoding
from .generation_options import GenerationOptions
from .sampling import OnToken, Sampling
from .time_limit import TimeLimited


def decoding_for(
    options: GenerationOptions,
    prompt: Integers,
    *,
    max_length: int,
    on_token: OnToken = lambda _sequence, _token: False,
    encoder_ids: Integers | None = None,
) -> Decoding:
    """Return the decoding of a request.

    Args:
        options: Its options.
        prompt: INT64 ``[length]``, the prompt (of an encoder-decoder: the decoder's).
        max_length: Most tokens of a sequence, prompt included.
        on_token: Is called with each token as it is chosen. Beams are chosen at the end: their tokens are not told.
        encoder_ids: INT64 ``[source]``, what the encoder reads; None: the prompt.
    """
    decoding: BeamSearch | Sampling
    if options.num_beams > 1:
        decoding = BeamSearch(options, prompt, max_length=max_length, encoder_ids=encoder_ids)
    else:
        decoding = Sampling(options, prompt, max_length=max_length, encoder_ids=encoder_ids, on_token=on_token)
    return decoding if options.max_time is None else TimeLimited(decoding, options.max_time)
