"""Determine what a model is fed: the inputs that the checkpoint's tokenizer gives, and the ids of padding. Imports torch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np

from serving.errors import ArtifactError, ExportError
from serving.runtime.tokenization import FIELDS
from serving.runtime.types import Arrays

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from export.verify import Run

IDS, MASK, TYPES = FIELDS
VISIBLE = 1e-3
"""Smallest difference of a model's outputs that is one, as a share of the largest output above 1."""


def fed_inputs(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> list[str]:
    """Return the inputs that ``transformers.pipeline`` feeds a model: those that the tokenizer gives and the model takes.

    The attention mask is always one of them where the model takes it, because rows are padded. A row alone has no padding, so the
    mask then says no more than its absence.

    Args:
        tokenizer: The checkpoint's tokenizer.
        model: The model.

    Returns:
        Names in the order of :data:`~serving.runtime.tokenization.FIELDS`.
    """
    taken = inspect.signature(model.forward).parameters
    return [name for name in FIELDS if name in taken and (name in tokenizer.model_input_names or name == MASK)]


def padding_values(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, location: str) -> dict[str, int]:
    """Return the values of padded positions, and see to it that the model looks for the same padding token.

    Decoders that classify take the logits of the last token that is not ``config.pad_token_id``, and RoBERTa and its relatives
    number the positions of all others. So rows are padded with that id, whatever the padding token of the tokenizer is. If the
    config has none, it becomes that of the tokenizer, in the model's config too.

    Args:
        tokenizer: The checkpoint's tokenizer.
        model: The model.
        location: The checkpoint, for messages.

    Returns:
        The value by model input name; 0 where absent.

    Raises:
        ArtifactError: There is no padding token, or the model has no embedding for it.
    """
    wanted = model.config.pad_token_id
    if wanted is None or wanted < 0:  # Llama's first checkpoints have -1, which stands for none
        if tokenizer.pad_token_id is None:
            raise ArtifactError(
                f"{location} has no padding token, neither pad_token_id in config.json nor pad_token in tokenizer_config.json",
                hint='set both, to a token that no text contains or to the end-of-text token: "pad_token": "<|endoftext|>"',
            )
        wanted = model.config.pad_token_id = tokenizer.pad_token_id
    embeddings = model.get_input_embeddings().num_embeddings
    if wanted >= embeddings:
        raise ArtifactError(
            f"the padding token of {location} has the id {wanted}, but the model has only {embeddings} embeddings",
            hint="set pad_token_id in its config.json to a token that the model has",
        )
    return {IDS: int(wanted), TYPES: tokenizer.pad_token_type_id}


def require_no_types(run: Run, max_length: int) -> None:
    """Check that a model whose graph has no ``token_type_ids`` ignores those that its tokenizer gives.

    GPT-2 takes them as further tokens, so zeros change its answers, and the exported graph has no input for them.

    Args:
        run: The model.
        max_length: Maximum tokens of a row.

    Raises:
        ExportError: It does not.
    """
    tokens = min(8, max_length)
    feed: Arrays = {IDS: np.arange(2, 2 + tokens, dtype=np.int64)[None], MASK: np.ones((1, tokens), dtype=np.int64)}
    without, given = run(feed), run({**feed, TYPES: np.zeros((1, tokens), dtype=np.int64)})
    for name, values in without.items():
        if np.abs(values - given[name]).max() > VISIBLE * max(1.0, float(np.abs(values).max())):
            raise ExportError(
                f"the tokenizer gives {TYPES}, which change the answers of this model, but its exported graph has no such input",
                hint=f'if the checkpoint was trained without them, set "model_input_names": ["{IDS}", "{MASK}"] '
                "in its tokenizer_config.json",
            )
