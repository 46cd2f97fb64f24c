"""Text → token ids as the served ensemble makes them: windows of long text, and what is too long to be cut or held."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers

from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import TooManyRowsError

WORDS = "good warm funny moving bad dull cold ugly and but film cast"
FAMILY = "👩‍👩‍👧"


def encoder(checkpoint: Path, max_length: int) -> TextEncoder:
    return TextEncoder(str(checkpoint / "tokenizer.json"), max_length=max_length, names=["input_ids"], padding={})


def words(window: object, text: str) -> list[str]:
    """What of ``text`` a window's tokens stand for, special tokens left out."""
    spans = zip(window.offsets, window.special_tokens_mask, strict=True)  # type: ignore[attr-defined]
    return [text[start:end] for (start, end), special in spans if not special]


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (0, ["good warm funny moving bad", "dull cold ugly and but", "film cast"]),
        (2, ["good warm funny moving bad", "moving bad dull cold ugly", "cold ugly and but film", "but film cast"]),
    ],
)
def test_long_text_becomes_windows_that_overlap(tiny_checkpoint: Path, stride: int, expected: list[str]) -> None:
    windows, owners = encoder(tiny_checkpoint, 7).windows(["dull film", WORDS, ""], stride=stride)
    texts = ["dull film", *[WORDS] * len(expected), ""]
    assert [" ".join(words(window, text)) for window, text in zip(windows, texts, strict=True)][1:-1] == expected
    assert owners.tolist() == [0, *[1] * len(expected), 2], "text that fits is one window, and so is none"
    assert max(map(len, windows)) == 7
    assert len(windows[-1]) == 2, "special tokens alone"
    assert all(window.tokens[0] == "[CLS]" and window.tokens[-1] == "[SEP]" for window in windows)


def test_windows_may_be_shorter_than_the_model_takes_but_no_longer(tiny_checkpoint: Path) -> None:
    taken = encoder(tiny_checkpoint, 9)
    assert {len(window) for window in taken.windows([WORDS], stride=0, max_length=6)[0]} == {6}
    assert max(len(window) for window in taken.windows([WORDS], stride=0, max_length=600)[0]) == 9


def test_a_length_is_ignored_where_nothing_is_truncated(tiny_checkpoint: Path) -> None:
    """As the tokenizers of ``transformers`` ignore it."""
    whole = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint)(WORDS, truncation=False, max_length=5)["input_ids"]
    (found,) = encoder(tiny_checkpoint, 64).encode([WORDS], truncation=False, max_length=5)
    assert found.ids == whole
    assert len(whole) > 5
    (cut,) = encoder(tiny_checkpoint, 64).encode([WORDS], max_length=5)
    assert cut.ids == [*whole[:4], whole[-1]]


def test_the_first_text_of_a_pair_stands_in_every_window(tiny_checkpoint: Path) -> None:
    windows, owners = encoder(tiny_checkpoint, 9).windows([("a film", WORDS), ("cast", "again")], stride=1)
    assert owners.tolist() == [0, 0, 0, 0, 1]
    for window in windows[:4]:
        parts = [window.sequence_ids.index(1), len(window) - 1]
        assert [("a film" + WORDS)[slice(*window.offsets[at])] for at in range(1, parts[0] - 1)] == ["a", "film"]
        assert window.type_ids == [0] * parts[0] + [1] * (len(window) - parts[0])
    seconds = [
        [WORDS[slice(*span)] for span, text in zip(w.offsets, w.sequence_ids, strict=True) if text == 1] for w in windows[:4]
    ]
    assert [part[-1] for part in seconds[:-1]] == [part[0] for part in seconds[1:]], "one token in common"
    assert [word for part in seconds for word in part][:4] == ["good", "warm", "funny", "moving"]
    assert seconds[-1][-1] == "cast"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("before", ["", f"{FAMILY} ", "cafe\u0301 한국어 ", "فيلم \u200d👍🏽 ", "a\u0308o\u0308 这部 "])
def test_offsets_are_characters_whatever_stands_before(
    architecture: str, before: str, make_checkpoint: Callable[[str], Path]
) -> None:
    text = f"{before}a good film {FAMILY} is dull {FAMILY * 9} cast"
    windows, owners = encoder(make_checkpoint(architecture), 7).windows([text], stride=3)
    assert len(windows) > 1 and set(owners.tolist()) == {0}
    seen = {found.strip() for window in windows for found in words(window, text)}
    assert {"good", "film", "is", "dull", "cast"} <= seen
    assert max(end for window in windows for _, end in window.offsets) == len(text)


@pytest.mark.parametrize(
    ("texts", "stride", "max_length", "message"),
    [
        (["film"], 5, None, "a window of 7 tokens has no room for new text beside 5 tokens of the one before"),
        (["film"], -1, None, "a window of 7 tokens has no room"),
        ([WORDS], 0, 2, "a window of 2 tokens has no room"),
        ([WORDS], 0, 1, "a window of 1 tokens has no room"),
        ([WORDS], 0, 0, "a window of 0 tokens has no room"),
        ([("film", WORDS)], 4, None, "a window of 7 tokens has no room"),
        ([(WORDS, "film")], 0, None, "no window of 7 tokens holds this: the first text leaves the second no room in it"),
        (
            [("and but film cast", WORDS)],
            0,
            None,
            "no window of 7 tokens holds this: the first text leaves the second no room in it",
        ),
        ([("and but film", WORDS)], 2, None, "no window of 7 tokens holds this: the first text leaves the second no room in it"),
    ],
)
def test_windows_without_room_are_refused_and_harm_nothing(
    tiny_checkpoint: Path,
    texts: list[str | tuple[str, str]],
    stride: int,
    max_length: int | None,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    refusing, untouched = encoder(tiny_checkpoint, 7), encoder(tiny_checkpoint, 7)
    with pytest.raises(ValueError, match=message):
        refusing.windows(texts, stride=stride, max_length=max_length)
    assert not capfd.readouterr().err, "a panic of the library prints a message, whoever catches it"
    for row in (WORDS, (WORDS, WORDS), ("film", WORDS)):
        assert refusing.encode([row])[0].ids == untouched.encode([row])[0].ids, "it cuts as before"
    again, _ = refusing.windows([WORDS], stride=1)
    assert [window.ids for window in again] == [window.ids for window in untouched.windows([WORDS], stride=1)[0]]


def test_windows_leave_the_encoder_as_it_was(tiny_checkpoint: Path) -> None:
    used, untouched = encoder(tiny_checkpoint, 9), encoder(tiny_checkpoint, 9)
    used.windows([("good warm", WORDS)], stride=1, max_length=8)
    assert used.encode([WORDS])[0].ids == untouched.encode([WORDS])[0].ids
    assert used.encode([(WORDS, WORDS)])[0].ids == untouched.encode([(WORDS, WORDS)])[0].ids


def test_no_texts_are_no_windows(tiny_checkpoint: Path) -> None:
    windows, owners = encoder(tiny_checkpoint, 7).windows([], stride=1)
    assert windows == []
    assert owners.shape == (0,) and owners.dtype == np.int64


@pytest.mark.parametrize("long", [WORDS, ("film", WORDS), (WORDS, "film")])
def test_without_truncation_long_rows_are_refused_by_number(tiny_checkpoint: Path, long: str | tuple[str, str]) -> None:
    rows = ["film", "good cast", long] if isinstance(long, str) else [("film", "cast"), ("good", ""), long]
    strict = encoder(tiny_checkpoint, 8)
    assert [len(encoding) for encoding in strict.encode(rows)][-1] == 8
    with pytest.raises(ValueError, match="row 2 is longer than the 8 tokens the model takes, and truncation is off"):
        strict.encode(rows, truncation=False)
    whole = [encoding.ids for encoding in strict.encode(rows[:2], truncation=False)]
    assert whole == [encoding.ids for encoding in strict.encode(rows[:2])]
    exact = encoder(tiny_checkpoint, len(WORDS.split()) + 2)
    assert len(exact.encode([WORDS], truncation=False)[0]) == 14, "as long as the model takes is not too long"


@pytest.mark.slow
def test_a_text_of_too_many_windows_is_refused_before_they_are_made(tiny_checkpoint: Path) -> None:
    """Windows that hardly advance are as many as the text has tokens, each as long as the model takes."""
    few = TextEncoder(str(tiny_checkpoint / "tokenizer.json"), max_length=7, names=["input_ids"], padding={}, most_rows=3)
    made, _ = few.windows([WORDS], stride=0)  # twelve words, five a window
    assert len(made) == 3
    assert len(few.windows([f"{WORDS} again bad dull"], stride=0)[0]) == 3, "as many as may be"
    for text, stride, windows in (
        (f"{WORDS} again bad dull good", 0, "4"),
        (WORDS, 4, "8"),
        ("good " * 1_000_000, 4, "405 or more"),  # the first 2,048 characters say enough
    ):
        with pytest.raises(TooManyRowsError, match=f"row 1 makes {windows} rows for the model, which takes 3 at most"):
            few.windows(["film", text], stride=stride)
    assert len(few.windows([("film", "good bad dull")], stride=0)[0]) == 1
    with pytest.raises(TooManyRowsError, match="row 0"):
        few.windows([("film", WORDS)], stride=1)
    assert len(few.encode([WORDS])[0]) == 7, "the encoder is as it was"
