"""Run the PyTorch original of an encoder-decoder. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from export.generation.slotted_decoder import Logits
from serving.runtime.types import JsonValue


class OriginalEncoderDecoder:
    """An encoder-decoder of ``transformers``, on the CPU, in fp32 and in evaluation mode.

    Args:
        model: The model.
        start: Tokens that the decoder begins with.
    """

    def __init__(self, model: Any, start: Sequence[int]) -> None:
        self.model, self.start = model, list(start)

    def logits(self, source: Sequence[int], answer: Sequence[int]) -> Logits:
        """Compute the logits of each token of an answer, given those before it.

        Args:
            source: Tokens of the source.
            answer: Tokens of the answer, without the start tokens.

        Returns:
            ``[tokens, vocabulary]``.
        """
        read = torch.tensor([[*self.start, *answer[:-1]]])
        with torch.inference_mode():
            output = self.model(input_ids=torch.tensor([list(source)]), decoder_input_ids=read, use_cache=False)
        found: Logits = output.logits[0, len(self.start) - 1 :].float().numpy()
        return found

    def answer(self, source: Sequence[int], settings: Mapping[str, JsonValue]) -> list[int]:
        """Generate an answer by ``generate``.

        Args:
            source: Tokens of the source.
            settings: Options of ``generate``; those of the checkpoint have no effect.

        Returns:
            Its tokens, without the start tokens.
        """
        return self.answers([source], settings)[0]

    def answers(self, sources: Sequence[Sequence[int]], settings: Mapping[str, JsonValue]) -> list[list[int]]:
        """Generate an answer to each of some sources of one length, all together; see :meth:`answer`.

        Answers that end before the longest are padded.
        """
        options = GenerationConfig(**{"pad_token_id": self.model.config.pad_token_id, **settings})
        ids = torch.tensor([list(source) for source in sources])
        with torch.inference_mode():
            found = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                decoder_input_ids=torch.tensor([self.start] * len(sources)),
                generation_config=options,
                use_model_defaults=False,
            )
        answers: list[list[int]] = found[:, len(self.start) :].tolist()
        return answers

    def score(self, source: Sequence[int], answer: Sequence[int], *, length_penalty: float) -> float:
        """Compute the score of an answer by which beam search chooses: its log probability, divided by the length penalty."""
        logits = torch.from_numpy(self.logits(source, answer)).double()
        chosen = torch.log_softmax(logits, -1)[torch.arange(len(answer)), torch.tensor(list(answer))]
        divisor: float = len(answer) ** length_penalty
        return float(chosen.sum()) / divisor
