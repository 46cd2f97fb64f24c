"""Text generation: what comes next in a text. Trained as a causal language model on plain texts.

A text that is longer than a row of the model becomes several rows, and nothing of it is lost. At its end stands the token that
says so, so that the model learns to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ._labels import IGNORED
from ._trained import TrainedTask
from .base import Arrays, Columns, Features, Origins

if TYPE_CHECKING:
    from typing import Self  # the Python inside Triton may be older than 3.11

    from tokenizers import Tokenizer

    from ..tokenization import TextEncoder


@dataclass(frozen=True, kw_only=True)
class TextGeneration(TrainedTask):
    """Args:
    end: what is appended to a text so that its tokens end with the one for the end; empty: the tokenizer does so itself.
    """

    end: str = ""

    name: ClassVar[str] = "text-generation"
    auto_model: ClassVar[str] = "AutoModelForCausalLM"
    architectures: ClassVar[tuple[str, ...]] = ("ForCausalLM", "LMHeadModel")
    outputs_read: ClassVar[tuple[str, ...]] = ("hits", "counted", "surprise")
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": None}
    causal: ClassVar[bool] = True
    token_level: ClassVar[bool] = True
    default_max_length: ClassVar[int] = 256

    @classmethod
    def checkpoint_settings(cls, config: Mapping[str, Any], files: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Refuses an encoder, which ``transformers`` would load: it sees each token that it is to foresee.

        Raises:
            ValueError: it is no language model.
        """
        known = config.get("architectures") or []
        if not any(name.endswith(cls.architectures) for name in known):
            wanted = " or ".join(cls.architectures)
            raise ValueError(f"its config names {', '.join(known) or 'no architecture'}, not one that ends in {wanted}")
        return super().checkpoint_settings(config, files, chosen)

    def with_tokenizer(self, tokenizer: Any) -> Self:
        if tokenizer.eos_token is None:
            raise ValueError("its tokenizer has no token for the end of a text")
        ends_itself = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
        return replace(self, end="" if ends_itself else tokenizer.eos_token)

    @classmethod
    def read_row(cls, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        if label is not None:
            raise ValueError("rows of plain text have no label")
        return texts, None

    def is_reference(self, value: Any) -> bool:
        return value is None

    def labelled(
        self,
        texts: Columns,
        references: Sequence[Any],  # noqa: ARG002 - there are none
        encoder: TextEncoder,  # noqa: ARG002
        *,
        training: bool,  # noqa: ARG002
    ) -> tuple[Columns, Sequence[Any]]:
        """Texts of which there is something to learn: blank ones, which files of plain text are full of, are left out."""
        kept = [text for text in texts[0] if text.strip()]
        return (kept,), [None] * len(kept)

    def training_features(self, texts: Columns, encoder: TextEncoder) -> Features:
        """Rows side by side, as many as a text needs. One of a single token teaches nothing: nothing comes next in it."""
        windows, owners = encoder.windows([text + self.end for text in texts[0]], stride=0)
        if not self.end:  # the tokenizer ends every window, though its text goes on
            for window, ends in zip(windows, [*(owners[1:] != owners[:-1]), True], strict=True):
                window.truncate(len(window) - (not ends))
        long = [len(window) > 1 for window in windows]
        return Features([window for window, kept in zip(windows, long, strict=True) if kept], Origins(owners[long]))

    def targets(self, features: Features, references: Sequence[Any]) -> dict[str, list[Any]]:  # noqa: ARG002 - the text is its own
        """The rows themselves: the model holds each token against what it said of those before."""
        return {"labels": [list(encoding.ids) for encoding in features.encodings]}

    def kept(self, outputs: Any, targets: Any) -> Any:
        """Of each row: its tokens that were the likeliest ones, those there were, and the sum of the surprise at them (nats)."""
        logits, wanted = outputs[:, :-1].float(), targets[:, 1:]
        counted = wanted != IGNORED
        likelihood = logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
        hits = (logits.argmax(-1) == wanted) & counted
        return hits.sum(-1), counted.sum(-1), -(likelihood * counted).sum(-1)

    @property
    def metric(self) -> str:
        return "next_token"

    @property
    def main_metric(self) -> str:
        return "likelihood"

    def judged(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Any]:  # noqa: ARG002 - nothing is written
        """Of each text what :meth:`kept` says of its rows, together."""
        rows = np.stack([outputs[name] for name in self.outputs_read], axis=-1).astype(np.float64)
        texts = np.zeros((origins.count, rows.shape[1]))
        np.add.at(texts, origins.owners, rows)
        found: list[Any] = texts.tolist()
        return found


TASK = TextGeneration
