"""Run the PyTorch original of a decoder. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from export.generation.slotted_decoder import Logits


class OriginalDecoder:
    """A causal language model of ``transformers``, with the attention that defines it.

    ``eager`` is that attention: the default, ``sdpa``, ignores the soft cap of Gemma 2.
    """

    def __init__(self, model: Any) -> None:
        """Keep the model, which is on the CPU and in evaluation mode."""
        self.model = model

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Compute the logits that follow each token of a row.

        Args:
            tokens: The row.

        Returns:
            ``[tokens, vocabulary]``.
        """
        with self._defined(), torch.inference_mode():
            found: Logits = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
        return found

    def greedy(self, prompt: Sequence[int], *, new_tokens: int, end: Sequence[int] = ()) -> list[int]:
        """Append the most probable token to a prompt again and again, by ``generate``.

        Args:
            prompt: Tokens of the prompt.
            new_tokens: Maximum number of tokens to append.
            end: Tokens that end the answer.

        Returns:
            The new tokens.
        """
        return self.greedy_batch([prompt], new_tokens=new_tokens, end=end)[0]

    def greedy_batch(self, prompts: Sequence[Sequence[int]], *, new_tokens: int, end: Sequence[int] = ()) -> list[list[int]]:
        """Append tokens as :meth:`greedy` does, to prompts of one length together."""
        inputs = torch.tensor([list(prompt) for prompt in prompts])
        # the checkpoint's own options, such as a penalty, are no part of the graph
        options = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=new_tokens,
            eos_token_id=list(end) or None,
            pad_token_id=0,
        )
        with self._defined(), torch.inference_mode():
            found = self.model.generate(
                inputs, attention_mask=torch.ones_like(inputs), generation_config=options, use_model_defaults=False
            )
        answers: list[list[int]] = found[:, inputs.shape[1] :].tolist()
        return answers

    @contextlib.contextmanager
    def _defined(self) -> Iterator[None]:
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)
