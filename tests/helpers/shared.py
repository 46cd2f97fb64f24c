"""Real data sets and checkpoints in a folder ``shared`` beside the checkout. Where it is absent, tests that need it are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"
BERT_TINY = SHARED / "checkpoints" / "bert-tiny-splade"
STORIES = SHARED / "checkpoints" / "stories260K-hf"
SQUAD = SHARED / "data" / "squad_v1.1" / "dev_500.jsonl"
SST2 = SHARED / "data" / "sst2" / "dev.tsv"
WNUT = SHARED / "data" / "wnut17" / "dev.jsonl"


def needs_shared(*paths: Path) -> pytest.MarkDecorator:
    """Skip a test where one of these is absent."""
    absent = [str(path.relative_to(SHARED)) for path in paths if not path.exists()]
    return pytest.mark.skipif(bool(absent), reason=f"needs ../shared/{', ../shared/'.join(absent)}")
