"""Tiny random checkpoints that fill masks, and how their answers are compared."""

from __future__ import annotations

from pathlib import Path

from export.cli import main
from tests.helpers.checkpoints import TOKENIZERS, make_config, make_tokenizer, randomize
from tests.helpers.reviews import review_rows


def masked_checkpoint(folder: Path, family: str, *, random: bool = True) -> Path:
    """A tiny model with a masked-language-modelling head; fresh, so that it learns quickly, where not every weight is random."""
    import torch
    from transformers import AutoModelForMaskedLM

    torch.manual_seed(0)
    tokenizer = make_tokenizer(TOKENIZERS.get(family, "unigram"))
    model = AutoModelForMaskedLM.from_config(make_config(family, tokenizer))
    if random:
        randomize(model)
        model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text_file(path: Path, count: int) -> Path:
    """Plain texts, without labels."""
    path.write_text("text\n" + "\n".join(text for text, _ in review_rows(count, seed=5)) + "\n", encoding="utf-8")
    return path


def exported(folder: Path, checkpoint: Path, rows: Path, *arguments: str) -> Path:
    """The bundle's folder."""
    given = [
        "--task",
        "fill-mask",
        "--name",
        "fill",
        "--artifacts",
        str(folder),
        "--checkpoint",
        str(checkpoint),
        "--test",
        str(rows),
    ]
    assert main(["export", *given, *arguments]) == 0
    return folder / "fill" / "bundle"
