"""What transformers alone generates from a checkpoint and a raw text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.parity_requests import ParityRequest

NOISE = 1e-5
"""Largest change of a score by which a tie is told, multiplied by the largest score of its row if that is above 1.

Sums in fp32 in another order change the scores of these models by about a tenth of it.
"""
TRIES = 24
ATTENTION = {"gemma2": "eager"}
"""Attention of models whose default, ``sdpa``, is not the one that defines them: it ignores the soft cap of Gemma 2."""


@dataclass(frozen=True)
class Generated:
    """The sequences of an answer: the tokens of each as far as they are known, and its text."""

    texts: list[str]
    tokens: list[list[int]] | None

    def equals(self, other: Generated) -> bool:
        """Whether both have the same texts, and the same tokens where both know them."""
        unknown = self.tokens is None or other.tokens is None
        return self.texts == other.texts and (unknown or self.tokens == other.tokens)


class LibraryGenerator:
    """A checkpoint in transformers, with the library's own choice of attention but for :data:`ATTENTION`."""

    def __init__(self, checkpoint: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        torch.set_num_threads(1)
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        self.writes_anew = bool(config.get("is_encoder_decoder"))
        auto = AutoModelForSeq2SeqLM if self.writes_anew else AutoModelForCausalLM
        self.model = auto.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation=ATTENTION.get(config["model_type"])
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def answer(self, request: ParityRequest, *, noise: float = 0, seed: int = 0) -> Generated:
        """Generate the answer to a request.

        Args:
            request: The request.
            noise: Largest change of the scores, at random.
            seed: Of the changes.
        """
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

        options = dict(request.options)
        if request.chat:
            message = [{"role": "user", "content": request.text}]
            inputs = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        else:
            inputs = self.tokenizer(request.text, return_tensors="pt")
        more: dict[str, Any] = {"logits_processor": LogitsProcessorList([_Noise(noise, seed)])} if noise else {}
        if stops := options.pop("stop_strings", None):  # as an option, generate hands the tokenizer on to an encoder-decoder
            more["stopping_criteria"] = StoppingCriteriaList([StopStringCriteria(self.tokenizer, stops)])
        with torch.inference_mode():
            found = self.model.generate(**inputs, **options, **more).tolist()
        prompt = [] if self.writes_anew else inputs["input_ids"][0].tolist()
        start = 1 if self.writes_anew else len(prompt)
        tokens = [self._ended(row[start:], request) for row in found]
        before = len(self._decoded(prompt))
        return Generated([self._decoded(prompt + one)[before:] for one in tokens], tokens)

    def is_tie(self, request: ParityRequest, found: Generated) -> bool:
        """Whether the library gives this answer too if its scores change by no more than fp32 sums do."""
        return any(self.answer(request, noise=NOISE, seed=seed).equals(found) for seed in range(TRIES))

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _ended(self, tokens: list[int], request: ParityRequest) -> list[int]:
        """Leave out the padding behind the end of a sequence."""
        end = request.options.get("eos_token_id", self.model.generation_config.eos_token_id)
        ends = set(end if isinstance(end, list) else [end])
        place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[: place + 1]


class _Noise:
    """A logits processor that changes all scores a little."""

    def __init__(self, size: float, seed: int) -> None:
        import torch

        self._size, self._numbers = size, torch.Generator().manual_seed(seed)

    def __call__(self, _read: Any, scores: Any) -> Any:
        import torch

        largest = torch.where(scores.isinf(), 0, scores).abs().amax(dim=-1, keepdim=True).clamp(min=1)
        return scores + self._size * largest * (2 * torch.rand(scores.shape, generator=self._numbers) - 1)
