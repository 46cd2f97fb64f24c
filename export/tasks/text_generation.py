"""Text generation: the continuation of a text. Trained as a causal language model.

A text that is longer than a row of the model becomes several rows, so that no text is lost. The end-of-text token stands at its
end, so that the model learns to stop. A row may also be a conversation: the chat template then writes its text, with all special
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

import numpy as np

from export.tasks._conversation import (
    CharacterSpan,
    ChatTemplate,
    Message,
    read_messages,
    tokens_within,
    transcript,
    without_special_tokens,
)
from export.tasks._generation import ExportedGenerationTask
from export.tasks.base import IGNORED, Label, Prediction, Reference
from export.tasks.trained import TrainedTask
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.types import Arrays, Features, JsonValue, Origins, Setting, TextColumns

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from serving.runtime.tokenization import TextEncoder


UNKNOWN_LENGTH = 10**9
"""A tokenizer that knows no maximum length gives a larger number."""


@dataclass(frozen=True, kw_only=True)
class TextGenerationTask(ExportedGenerationTask[TextGeneration], TrainedTask):
    """Trains and exports causal language models.

    Attributes:
        end: Text appended to every text so that its tokens end with the end-of-text token. Empty: the tokenizer appends it.
        conversations: Whether rows are conversations.
        rendered: Whether rows are conversations that the chat template rendered before.
        template: Template of conversations; None: rows are plain texts, or the task is not bound to a tokenizer.
        assistant_only_loss: Learn only what the assistant writes in a conversation.
    """

    end: str = ""
    conversations: bool = False
    rendered: bool = False
    template: ChatTemplate | None = None
    assistant_only_loss: bool = False

    name: ClassVar[str] = "text-generation"
    auto_model: ClassVar[str] = "AutoModelForCausalLM"
    truncating_options: ClassVar[Mapping[str, object]] = {}
    architectures: ClassVar[tuple[str, ...]] = ("ForCausalLM", "LMHeadModel")
    served_class: ClassVar[type[TextGeneration]] = TextGeneration
    columns: ClassVar[Mapping[str, str | None]] = {"text": "text", "text_pair": None, "label": None}
    causal: ClassVar[bool] = True
    token_level: ClassVar[bool] = True
    reads_digits: ClassVar[bool] = False
    default_max_length: ClassVar[int] = 256
    several_answers: ClassVar[bool] = True
    settings: ClassVar[Mapping[str, Setting]] = {
        "assistant_only_loss": Setting(bool, help="Compute loss and metric only on what the assistant writes in a conversation."),
    }

    @property
    def model_outputs(self) -> tuple[str, ...]:
        """Return what :meth:`preprocess_logits_for_metrics` leaves of a batch."""
        return ("hits", "tokens", "negative_log_likelihood")

    @classmethod
    def checkpoint_settings(
        cls, config: Mapping[str, object], files: Mapping[str, object], chosen: Mapping[str, JsonValue]
    ) -> dict[str, JsonValue]:
        """Refuse an encoder, which ``transformers`` would load: it sees each token that it should predict.

        Raises:
            ValueError: The checkpoint is not a causal language model.
        """
        known = cast("list[str]", config.get("architectures") or [])
        if not any(name.endswith(cls.architectures) for name in known):
            wanted = " or ".join(cls.architectures)
            raise ValueError(f"its config names {', '.join(known) or 'no architecture'}, but one that ends in {wanted} is needed")
        return super().checkpoint_settings(config, files, chosen)

    @classmethod
    def from_labels(cls, labels: Sequence[Label], *, names: Sequence[str], pair: bool) -> Self:  # noqa: ARG003 - there are no names
        """Accept any rows of single texts, or of conversations."""
        if pair:
            raise ValueError(f"{cls.name} trains on single texts, not on pairs")
        return cls(served=TextGeneration(), conversations=isinstance(labels[0], list))

    def idle_settings(self) -> Mapping[str, str]:
        """Return the setting that plain texts do not use."""
        return {} if self.conversations else {"assistant_only_loss": "the rows are plain texts, not lists of messages"}

    @property
    def evaluation_settings(self) -> dict[str, JsonValue]:
        """Return the settings that only evaluation needs, without the chat template, which the tokenizer of the checkpoint has."""
        return {name: value for name, value in super().evaluation_settings.items() if name != "template"}

    @classmethod
    def from_config(cls, config: Mapping[str, object], *, pair: bool) -> Self:  # noqa: ARG003 - the checkpoint itself says more
        """Accept any causal language model; see :meth:`bound_to`."""
        if pair:
            raise ValueError(f"{cls.name} takes single texts, not pairs")
        return cls(served=TextGeneration())

    def with_evaluation_labels(self, labels: Sequence[Label], *, names: Sequence[str]) -> Self:  # noqa: ARG002
        """Accept plain texts, or conversations."""
        return replace(self, conversations=isinstance(labels[0], list))

    def with_kept_rows(self, settings: Mapping[str, JsonValue]) -> Self:
        """Remember that conversations were rendered in fine-tuning."""
        return replace(self, rendered=bool(settings.get("conversations")))

    @property
    def adds_special_tokens(self) -> bool:
        """Return whether the rows are plain texts: the chat template writes all special tokens."""
        return not (self.conversations or self.rendered)

    def bound_to(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: Mapping[str, object]) -> Self:
        """Return the task with the served half of a checkpoint."""
        found = self.defaults(model, tokenizer, config)
        longest = tokenizer.model_max_length
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        served = replace(
            self.served,
            generation=dict(found.generation),
            model_generation=dict(found.model_generation),
            vocab_size=model.get_output_embeddings().weight.shape[0],
            bos_token_id=found.bos_token_id,
            pad_token_id=found.pad_token_id,
            prefix=found.prefix,
            chat=tokenizer.chat_template is not None,
            special_tokens=special,
            model_max_length=longest if longest < UNKNOWN_LENGTH else None,
        )
        return replace(self, served=served)

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Find out whether the tokenizer appends the end-of-text token itself, or take its chat template."""
        if tokenizer.eos_token is None:
            raise ValueError("its tokenizer has no token for the end of a text")
        if self.conversations:
            return replace(self, template=ChatTemplate(tokenizer))
        ends_itself = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
        return replace(self, end="" if ends_itself else tokenizer.eos_token)

    @classmethod
    def read_row(cls, texts: tuple[object, ...], label: object) -> tuple[tuple[object, ...], Label]:
        """Read a plain text, or a list of messages, which become the label."""
        if label is not None:
            raise ValueError("rows of plain text have no label")
        if not isinstance(texts[0], list):
            return texts, None
        messages = read_messages(texts[0])
        return (transcript(messages),), cast(Label, messages)

    def reference(self, label: Label) -> Reference:
        """Return the messages of a conversation; None for a plain text, which is its own target."""
        return label if self.conversations else None

    def is_reference(self, value: object) -> bool:
        """Accept None, and what the assistant writes in a conversation."""
        return value is None or isinstance(value, list)

    def prepare_rows(
        self,
        texts: TextColumns,
        references: Sequence[Reference],
        encoder: TextEncoder,  # noqa: ARG002
        *,
        training: bool,  # noqa: ARG002
    ) -> tuple[TextColumns, Sequence[Reference]]:
        """Render conversations. Leave out blank texts, which are common in files of plain text.

        Returns:
            The texts, and for each the spans that the assistant writes; None: all of the text is learnt.
        """
        if self.template is not None:
            conversations = cast("Sequence[Sequence[Message]]", references)
            spans = [self.template.assistant_spans(one) if self.assistant_only_loss else None for one in conversations]
            return ([self.template.render(one) for one in conversations],), cast("Sequence[Reference]", spans)
        kept = [text for text in texts[0] if text.strip()]
        return (kept,), [None] * len(kept)

    def training_features(self, texts: TextColumns, encoder: TextEncoder) -> Features:
        """Split each text into as many rows as it needs, without overlap. A row of one token is left out: nothing follows in it."""
        with without_special_tokens(encoder.tokenizer) if self.conversations else nullcontext():
            windows, mapping = encoder.windows([text + self.end for text in texts[0]], stride=0)
        if not self.end and not self.conversations:  # the tokenizer ends every window, though its text goes on
            for window, ends in zip(windows, [*(mapping[1:] != mapping[:-1]), True], strict=True):
                window.truncate(len(window) - (not ends))
        long = [len(window) > 1 for window in windows]
        return Features([window for window, kept in zip(windows, long, strict=True) if kept], Origins(mapping[long]))

    def targets(self, features: Features, references: Sequence[Reference]) -> dict[str, list[JsonValue]]:
        """Return the rows themselves: the model compares each token with its prediction from the tokens before.

        Of a conversation with spans, the tokens outside of them are ignored.
        """
        labels: list[JsonValue] = []
        for encoding, row in zip(features.encodings, features.origins.sample_mapping.tolist(), strict=True):
            spans = cast("Sequence[CharacterSpan] | None", references[row])
            learnt = [True] * len(encoding) if spans is None else tokens_within(encoding, spans)
            labels.append([token if wanted else IGNORED for token, wanted in zip(encoding.ids, learnt, strict=True)])
        return {"labels": labels}

    def preprocess_logits_for_metrics(
        self, outputs: torch.Tensor | tuple[torch.Tensor, ...], targets: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return, for each row: correctly predicted tokens, all tokens, and the sum of the negative log-likelihood (nats)."""
        logits, wanted = cast("torch.Tensor", outputs)[:, :-1].float(), targets[:, 1:]
        counted = wanted != IGNORED
        likelihood = logits.gather(-1, wanted.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
        hits = (logits.argmax(-1) == wanted) & counted
        return hits.sum(-1), counted.sum(-1), -(likelihood * counted).sum(-1)

    @property
    def metric(self) -> str:
        """Return the metric of the next token."""
        return "next_token"

    @property
    def default_metric(self) -> str:
        """Return the likelihood per token."""
        return "likelihood"

    @property
    def selectable_metrics(self) -> tuple[str, ...]:
        """Return the figures of the metric of which higher is better."""
        return ("likelihood", "token_accuracy")

    def evaluate(self, outputs: Arrays, origins: Origins, tokenizer: Tokenizer) -> list[Prediction]:  # noqa: ARG002
        """Sum what :meth:`preprocess_logits_for_metrics` gave, over the rows of each text."""
        rows = np.stack([outputs[name] for name in self.model_outputs], axis=-1).astype(np.float64)
        texts = np.zeros((origins.count, rows.shape[1]))
        np.add.at(texts, origins.sample_mapping, rows)
        return cast("list[Prediction]", texts.tolist())


TASK = TextGenerationTask
