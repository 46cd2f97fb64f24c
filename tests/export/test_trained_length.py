"""A fine-tuned checkpoint truncates where it was trained: in the library, as the model card calls it, and when it is served."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint import is_fine_tuned, load_tokenizer, read_config, resolve_max_length, save_tokenizer
from export.model_card import model_card
from tests.helpers.manifests import checkpoint_manifest
from tests.helpers.parity import assert_same
from tests.helpers.reviews import review_rows
from tests.helpers.tiny_pipelines import TinyPipelines

TRAINED = 16
"""Length of the rows in training. The models take 64 tokens or more."""
LONG = [" ".join([text] * 30) for text, _ in review_rows(6, seed=5)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPipelines]:
    with ExitStack() as stack:
        yield TinyPipelines(tmp_path_factory.mktemp("tiny"), stack)


def card_snippet(folder: Path, task: str, settings: dict[str, Any]) -> Any:
    """Run the Python of the model card; return what it makes."""
    card = model_card(checkpoint_manifest(task=task, settings=settings, max_length=TRAINED))
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet is not None
    names: dict[str, Any] = {}
    exec(snippet[1].replace("FOLDER or OWNER/NAME", str(folder)), names)  # noqa: S102 - what users run
    return names["model"]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("text-classification", {}),
        ("token-classification", {}),
        ("token-classification", {"aggregation_strategy": "simple", "stride": 4}),
        ("question-answering", {}),
        ("question-answering", {"doc_stride": 3}),
        ("fill-mask", {}),
    ],
)
def test_long_texts_are_answered_as_served(tiny: TinyPipelines, task: str, options: dict[str, Any]) -> None:
    folder = tiny.checkpoint(task)
    save_tokenizer(load_tokenizer(folder), folder, TRAINED)
    ours = tiny.client(folder, task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = card_snippet(folder, task, {})
        assert theirs.tokenizer.model_max_length == TRAINED
        for text in LONG:
            row: Any = {"question": "what", "context": text[:300]} if task == "question-answering" else text
            row = f"[MASK] {text}" if task == "fill-mask" else row
            assert_same([ours(row, **options)], [theirs(row, **options)])
            if task in {"text-classification", "fill-mask"}:
                assert_same(
                    [ours(row)], [theirs(theirs.tokenizer.decode(theirs.tokenizer(row, truncation=True)["input_ids"][1:-1]))]
                )


def test_pairs_and_candidates_are_answered_as_served(tiny: TinyPipelines) -> None:
    folder = tiny.checkpoint("text-classification")
    save_tokenizer(load_tokenizer(folder), folder, TRAINED)
    pairs = [{"text": text, "text_pair": text[::-1]} for text in LONG]
    assert_same(
        tiny.client(folder, "text-classification", pair=True)(pairs), card_snippet(folder, "text-classification", {})(pairs)
    )
    folder = tiny.checkpoint("zero-shot-classification")
    save_tokenizer(load_tokenizer(folder), folder, TRAINED)
    both = tiny.client(folder, "zero-shot-classification"), tiny.pipeline(folder, "zero-shot-classification")
    assert_same(*(pipe(LONG, candidate_labels=["good", "bad"]) for pipe in both))


def test_the_limit_of_a_fine_tuned_model_is_its_own(tiny: TinyPipelines, tmp_path: Path) -> None:
    folder = tiny.checkpoint("text-classification")
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    positions = config["max_position_embeddings"]
    assert positions > tokenizer.model_max_length
    save_tokenizer(tokenizer, tmp_path, TRAINED)
    again = load_tokenizer(tmp_path)
    assert resolve_max_length(None, again, config, default=48) == TRAINED, "the limit of a foreign tokenizer has a meaning"
    assert resolve_max_length(None, again, config, default=48, fine_tuned=True) == 48
    assert resolve_max_length(None, again, config, default=200, fine_tuned=True) == positions
    assert resolve_max_length(positions, again, config, default=48) == positions
    assert not is_fine_tuned(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({}))
    assert is_fine_tuned(tmp_path)
