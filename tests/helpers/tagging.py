"""Tiny random checkpoints that label tokens, texts that are hard to label, and how answers are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.checkpoints import TOKENIZERS, make_config, make_tokenizer, randomize

LABELS = ("O", "B-film", "I-film", "B-creative-work", "I-creative-work", "plain", "E-odd")
STRATEGIES = ("none", "simple", "first", "average", "max")
TOLERANCE = 1e-3
TEXTS = [
    "the film was good, its cast a delight (of course): this story's beautiful.",
    "warm   spaces  and\ttabs\nand lines",
    "",
    " ",
    "a",
    "한국어 문장입니다.",
    "这部电影很好看。",
    "فيلم رائع",
    "🎬👍🏽👩‍👩‍👧 good film",
    "cafe\u0301 ole\u0301 café",
    "a\u200db\u200cc",
    "nul\x00inside",
    "[PAD] [CLS] [SEP] [MASK] [UNK] <unk> <mask> <s> film",
    "the film and this story with every scene " * 40,
]


def tiny_tagger(folder: Path, architecture: str) -> Path:
    """Write a tiny random checkpoint that takes 64 tokens."""
    from transformers import AutoModelForTokenClassification

    tokenizer = make_tokenizer(TOKENIZERS[architecture])
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]  # some take no more
    config = make_config(architecture, tokenizer)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {label: index for index, label in enumerate(LABELS)}
    model = AutoModelForTokenClassification.from_config(config)
    randomize(model)
    _level(model.eval(), tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _level(model: Any, tokenizer: Any) -> None:
    """Let no label win everywhere, as chance would have it."""
    import torch

    with torch.no_grad():
        batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        real = batch["attention_mask"] == 1
        model.classifier.weight /= model(**batch).logits[real].std(dim=0)[:, None] / 2
        model.classifier.bias -= model(**batch).logits[real].mean(dim=0)
