"""A tiny model that answers questions: made-up rows, and a checkpoint and a bundle of it that are made once a run."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tests.helpers.checkpoints import make_config, make_tokenizer
from tests.helpers.reviews import FILLING, GOOD

QUESTION = "of course"
STRANGE_TEXTS = [
    "a",
    "한국어 문장입니다. 그 영화는 좋았다.",
    "这部电影很好看。",
    "فيلم رائع جدا",
    "🎬 the film 👍🏽 was 👩‍👩‍👧 superb 🇰🇷",
    "cafe\u0301 ole\u0301 was e\u0301\u0323 superb",
    "the a\u200db\u200cc film",
    "nul\x00inside the film",
    "[PAD] the [CLS] film [SEP] was [MASK] superb",
    "the film ... , , superb",
    "superb Superb SUPERB superb",
    "unknowable-词-words ž",
]
_FOLDER = tempfile.TemporaryDirectory(prefix="tritonize-answering-")


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of up to 60 words, and where the one phrase of praise in each stands."""
    choose = random.Random(seed)
    made = []
    for _ in range(count):
        parts = [choose.choice(FILLING) for _ in range(choose.choice((0, 2, 6, 6, 30)))]
        answer, place = choose.choice(GOOD), choose.randint(0, len(parts))
        start = len("".join(f"{part} " for part in parts[:place]))
        context = " ".join([*parts[:place], answer, *parts[place:]])
        made.append({"question": QUESTION, "context": context, "answers": {"text": [answer], "answer_start": [start]}})
    return made


def write(path: Path, made: list[dict[str, Any]]) -> Path:
    """As jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def texts(count: int, seed: int) -> list[dict[str, str]]:
    """Questions and texts alone."""
    return [{"question": row["question"], "context": row["context"]} for row in rows(count, seed)]


LONGEST = 512
"""Tokens that the model takes, and that the bundle is exported for. The checkpoint's tokenizer has those of the training."""


@functools.cache
def base() -> Path:
    """Folder of a tiny BERT without a head that takes 512 tokens."""
    import torch
    from transformers import AutoModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer("wordpiece")
    tokenizer.model_max_length = LONGEST
    config = make_config("bert", tokenizer)
    config.max_position_embeddings = LONGEST
    folder = Path(_FOLDER.name) / "base"
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def trained() -> Path:
    """Folder of :func:`base` fine-tuned by the command line on windows of 48 tokens, so that long texts are several."""
    import torch

    from export.cli import main

    torch.set_num_threads(1)  # more only wait for each other in so small a model
    folder = Path(_FOLDER.name)
    files = {split: write(folder / f"{split}.jsonl", rows(count, seed)) for split, count, seed in _SPLITS}
    named = [word for split, path in files.items() for word in (f"--{split}", str(path))]
    training = [
        "--epochs",
        "4",
        "--batch-size",
        "16",
        "--learning-rate",
        "5e-3",
        "--max-length",
        "48",
        "--device",
        "cpu",
        "--keep-leaks",
    ]
    assert main(["finetune", *_shared(), "--checkpoint", str(base()), *named, *training]) == 0
    return folder / "tiny" / "checkpoint"


_SPLITS = (("train", 240, 1), ("validation", 60, 2), ("test", 100, 3))


def _shared() -> list[str]:
    return ["--task", "question-answering", "--name", "tiny", "--artifacts", _FOLDER.name]


@functools.cache
def bundle() -> Path:
    """Folder of fp32 of :func:`trained`, which takes the 512 tokens that the checkpoint does."""
    from export.cli import main

    trained()
    assert main(["export", *_shared(), "--precision", "fp32", "--max-length", str(LONGEST), "--device", "cpu"]) == 0
    return Path(_FOLDER.name) / "tiny" / "bundle"
