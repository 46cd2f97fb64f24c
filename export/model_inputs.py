"""Determine what a model is fed: the inputs that the checkpoint's tokenizer gives, and the ids of padding."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from serving.errors import ArtifactError
from serving.runtime.tokenization import FIELDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

IDS, MASK, TYPES = FIELDS


def given_inputs(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the inputs that a checkpoint's tokenizer gives, in the order of :data:`~serving.runtime.tokenization.FIELDS`.

    The ids are always one of them. So is the attention mask, because rows are padded. A row alone has no padding, so the mask then
    says no more than its absence.
    """
    return [name for name in FIELDS if name in (IDS, MASK) or name in tokenizer.model_input_names]


def fed_inputs(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> list[str]:
    """Return the inputs that ``transformers.pipeline`` feeds a model: those of :func:`given_inputs` that the model takes."""
    taken = inspect.signature(model.forward).parameters
    return [name for name in given_inputs(tokenizer) if name in taken]


def bind_padding(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, location: str) -> dict[str, int]:
    """Bind a model to a padding token, and return the values of padded positions.

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
    embeddings = model.get_input_embeddings().weight.shape[0]
    if wanted >= embeddings:
        raise ArtifactError(
            f"the padding token of {location} has the id {wanted}, but the model has only {embeddings} embeddings",
            hint="set pad_token_id in its config.json to a token that the model has",
        )
    return {IDS: int(wanted), TYPES: tokenizer.pad_token_type_id}
