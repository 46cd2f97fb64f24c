"""A model of the size of MiniLM with random weights: it computes as long as a real one."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.checkpoints import make_tokenizer, randomize
from tests.helpers.exporting import export_bundle
from tests.helpers.reviews import LABELS, SAMPLE


def make_sized_bundle(folder: Path) -> Path:
    """Write a checkpoint into the folder (hidden size 384, 6 layers, 12 heads) and export it in fp32. Return the bundle."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = make_tokenizer("wordpiece")
    tokenizer.model_max_length = 96
    config = BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=128,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    torch.manual_seed(11)
    model = BertForSequenceClassification(config)
    randomize(model)
    checkpoint = folder / "checkpoint"
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    return export_bundle(folder, checkpoint, SAMPLE, "--precision", "fp32")
