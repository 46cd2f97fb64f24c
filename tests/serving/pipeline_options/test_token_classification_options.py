"""Every option and form of a call of token classification: the client gives the same answer, or an error of the same class.

The served task runs in this process. What the client does otherwise on purpose is at the end.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.parity import assert_alike, assert_same
from tests.helpers.tagging import TEXTS, tiny_tagger
from tests.helpers.tiny_pipelines import TinyPipelines
from tests.serving.pipeline_options.cases import WORDS, Case, each, shown

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
]


SPLIT = ["the", "film", "(café)", "", "unbelievably"]
TAGS: list[Case] = [
    *each(
        [TEXTS[0], [TEXTS[0]], [TEXTS[0], "a"], []],
        [
            {},
            {"aggregation_strategy": "simple"},
            {"aggregation_strategy": "FIRST"},
            {"aggregation_strategy": None},
            {"ignore_labels": []},
            {"ignore_labels": ("O", "film"), "aggregation_strategy": "average"},
            {"grouped_entities": True},
            {"grouped_entities": True, "ignore_subwords": True},
            {"grouped_entities": False, "aggregation_strategy": "max"},
            {"ignore_subwords": True},
        ],
    ),
    *each(
        [TEXTS[0]],
        [
            {"ignore_labels": None},
            {"ignore_labels": {"O"}},
            {"stride": 4},
            {"stride": 4, "aggregation_strategy": "simple"},
            {"stride": None},
            {"is_split_into_words": False},
            {"delimiter": "_"},
            {"offset_mapping": None},
            # refused
            {"aggregation_strategy": "best"},
            {"ignore_labels": "O"},
            {"ignore_labels": 5},
            {"stride": 4, "aggregation_strategy": "none"},
            {"stride": 100, "aggregation_strategy": "simple"},
            {"stride": "4"},
            {"is_split_into_words": True},
            {"offset_mapping": [[(0, 1)], [(0, 1)]]},
            {"top_k": 1},
        ],
    ),
    *each(
        [SPLIT, [SPLIT, ["a"]], ["the"] * 200],
        [
            {"is_split_into_words": True},
            {"is_split_into_words": True, "delimiter": "_", "aggregation_strategy": "simple"},
            {"is_split_into_words": True, "delimiter": "", "aggregation_strategy": "max", "ignore_labels": []},
        ],
    ),
    *each([None, 5, [None], ["a", 5], b"x", {"text": "a"}, [["a", "b"]]], [{}, {"aggregation_strategy": "simple"}]),
    *each(["", [""], TEXTS[0] * 20], [{}, {"aggregation_strategy": "max"}]),
    ((), {}),
    ((["a", 5],), {"is_split_into_words": True}),
    ((), {"inputs": TEXTS[0]}),
]


@pytest.mark.parametrize("case", TAGS, ids=shown)
def test_token_classification(both: Any, case: Case) -> None:
    assert_alike(*both("token-classification"), *case[0], **case[1])


def test_words_of_a_tokenizer_without_marks(made: TinyPipelines) -> None:
    """RoBERTa's, whose words the pipeline tells apart by spaces of the text."""
    checkpoint = tiny_tagger(made.folder / "roberta", "roberta")
    pair = made.client(checkpoint, "token-classification"), made.pipeline(checkpoint, "token-classification")
    for words in (SPLIT, [SPLIT, ["a"]]):
        for strategy in ("none", "simple", "first"):
            assert_alike(*pair, words, is_split_into_words=True, aggregation_strategy=strategy, ignore_labels=[])


@pytest.mark.parametrize("strategy", ["max", "none", "simple"])
def test_token_classification_as_it_was_exported(made: TinyPipelines, strategy: str) -> None:
    task = "token-classification"
    checkpoint = made.checkpoint(task)
    pair = (
        made.client(checkpoint, task, aggregation_strategy=strategy, ignore_labels='["film"]'),
        made.pipeline(checkpoint, task, aggregation_strategy=strategy, ignore_labels=["film"]),
    )
    for options in ({}, {"aggregation_strategy": "first"}, {"ignore_labels": ["O"]}, {"stride": 5}, {"grouped_entities": True}):
        assert_alike(*pair, TEXTS[0], **options)


def test_numbers_as_labels_of_tokens_stay_numbers(made: TinyPipelines) -> None:
    pair = made.with_number_labels("token-classification")
    assert_alike(*pair, WORDS)
    assert {token["entity"] for token in pair[0](WORDS)} == {7}
    assert_alike(*pair, WORDS, ignore_labels=[7])
    assert pair[0](WORDS, ignore_labels=[7]) == []
    assert {entity["entity_group"] for entity in pair[0](WORDS, aggregation_strategy="simple")} == {"7"}, "the pipeline fails"


def test_token_classification_otherwise(both: Any) -> None:
    ours, _ = both("token-classification")
    with pytest.raises(ValueError, match="offset_mapping is not served"):
        ours(TEXTS[0], offset_mapping=[(0, 1)])
    with pytest.raises(ValueError, match="words are not read in windows"):
        ours(SPLIT, is_split_into_words=True, stride=3)
    with pytest.raises(ValueError, match="option stride must be 0 or more"):
        ours(TEXTS[0], stride=-1)
    assert_same(ours(TEXTS[0], truncation=True), ours(TEXTS[0]))
