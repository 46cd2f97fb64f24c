"""Made-up film reviews with a label each."""

from __future__ import annotations

import random
from pathlib import Path

GOOD = ("good", "warm", "funny", "engaging", "a delight", "moving", "beautiful", "superb")
BAD = ("bad", "dull", "tedious", "a mess", "cold", "lifeless", "ugly", "dreadful")
FILLING = ("the film", "this story", "its cast", "and", "but", "of course", "with", "every scene", "is", "was", "again", "café")
SAMPLE = Path(__file__).parents[1] / "data" / "reviews.tsv"  # 40 rows
LABELS = ("negative", "positive")
TRAINING = (
    "--epochs",
    "6",
    "--batch-size",
    "16",
    "--learning-rate",
    "5e-3",
    "--max-length",
    "32",
    "--device",
    "cpu",
    "--name",
    "tiny",
    "--keep-leaks",  # made-up rows of one word are often the same
)
"""Options with which a tiny checkpoint learns them."""


def review_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Made-up reviews of 1 to 40 words and their labels, told apart by their words."""
    choose = random.Random(seed)
    rows = []
    for _ in range(count):
        label = choose.choice(LABELS)
        words = [choose.choice(FILLING) for _ in range(choose.choice((0, 1, 3, 6, 12, 20)))]
        words.insert(choose.randint(0, len(words)), choose.choice(GOOD if label == "positive" else BAD))
        rows.append((" ".join(words), label))
    return rows


def write_tsv(path: Path, rows: list[tuple[str, str]], header: str = "text\tlabel") -> Path:
    """Write rows as a tsv file."""
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path
