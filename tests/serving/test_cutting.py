"""Texts are cut before they are tokenized: the model gets the same tokens as of the whole text, or the text is refused."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from serving.runtime import cutting
from serving.runtime.cutting import TextCutter, kept_tokens, without_overflow
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Text, TextTooLongError, TooManyRowsError
from tests.helpers.checkpoints import make_tokenizer
from tests.helpers.shared import BERT_TINY, STORIES, needs_shared

STRATEGIES = ("longest_first", "only_first", "only_second")
FIELDS = ("ids", "type_ids", "tokens", "offsets", "special_tokens_mask", "attention_mask", "word_ids", "sequence_ids")

PIECES = (
    *("a", "good", "film", "and", "dull", "cast", "is", "not", ",", ".", "!", "'", "'s", "'ll", "--", "(", ")"),
    *("12", "3", "a1", "x.y", "Funny,", "MOVING", "moving.", "won't"),
    *(
        "的",
        "这部电影",
        "很好看。",
        "，",
        "字！",
        "日本語の",
        "カﾞ",
        "한국어",
        "\u1112\u1161\u11ab",
        "فيلم",
        "جيد،",
        "हिन्दी",
        "ภาษาไทย",
        "ำ",
        "ΣΑΣ",
        "Я",
        "ß",
    ),
    *(
        "e\u0301",
        "\u0301",
        "\u0323\u0301",
        "\u0345",
        "é",
        "ﬁ",
        "\u037a",
        "\ufdfa",
        "ൎ",
        "👩\u200d👩\u200d👧",
        "👍🏽",
        "🇩🇪",
        "\u200d",
        "\ufe0f",
    ),
    *("\0", "\x01", "\x0b", "\x1c", "\x7f", "\u200b", "\ufeff", "\ufffd", "\u00ad", "▁", "▁a", "``", "''", "Ġ"),
    *("[MASK]", "[SEP]", "<mask>", "<s>", "</s>", "<extra>", "word_only", "x" * 120, "字" * 30, "<|sp|>"),
)
SPACES = (
    " ",
    " ",
    " ",
    " ",
    "  ",
    "   ",
    "\n",
    "\t",
    "\r\n",
    "\n\n",
    " \n",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u2028",
    "\u0085",
    "\x0c",
    "\u1680",
    "",
)


def fuzzed(generator: random.Random, longest: int) -> str:
    """A text of pieces that tokenizers treat in different ways, with all kinds of white space between, or none."""
    style = generator.random()
    if style < 0.05:
        return generator.choice((" ", "\n", "\u3000", "a", "字", "\u0301")) * generator.randint(0, longest)
    gaps = SPACES if style < 0.5 else (" ",) if style < 0.8 else ("", "", "", " ")
    pieces = generator.sample(PIECES, generator.randint(1, len(PIECES)))
    return "".join(generator.choice(pieces) + generator.choice(gaps) for _ in range(generator.randint(0, longest)))


def special(content: str, **how: bool) -> AddedToken:
    return AddedToken(content, special=True, normalized=False, **how)


def built(model: Any, normalizer: Any, split: Any, *added: AddedToken) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if split is not None:
        tokenizer.pre_tokenizer = split
    tokenizer.add_tokens(list(added))
    return tokenizer


@cache
def serialized(kind: str) -> str:
    found: str = MADE[kind]().to_str()
    return found


def tiny(kind: str) -> Callable[[], Tokenizer]:
    return lambda: make_tokenizer(kind).backend_tokenizer


def changed(kind: str, *added: AddedToken, **components: Any) -> Callable[[], Tokenizer]:
    def change() -> Tokenizer:
        tokenizer = make_tokenizer(kind).backend_tokenizer
        for name, component in components.items():
            setattr(tokenizer, name, component)
        tokenizer.add_tokens(list(added))
        return tokenizer

    return change


def merging() -> Tokenizer:
    """A BPE over whole texts, as those of SentencePiece, that never merges over the beginning of a word."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,!'"]
    merges = [("▁", "a"), ("o", "o"), ("g", "oo"), ("▁", "goo"), ("▁goo", "d"), ("a", "n"), ("▁", "▁"), ("l", "l"), ("i", "s")]
    pieces = [*("<unk>", "<s>", "</s>"), *letters, *(first + second for first, second in merges)]
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, unk_token=pieces[0], fuse_unk=True)
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return built(model, normalizer, None, special("<s>"), special("</s>"))


def truncating_left() -> Tokenizer:
    tokenizer: Tokenizer = make_tokenizer("wordpiece").backend_tokenizer
    tokenizer.enable_truncation(64, direction="left")
    return tokenizer


ROBERTA = processors.RobertaProcessing(("</s>", 3), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
LEGACY = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents()]
MADE: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": tiny("wordpiece"),
    "bpe": tiny("bpe"),
    "unigram": tiny("unigram"),
    "cased wordpiece": changed("wordpiece", normalizer=normalizers.BertNormalizer(lowercase=False, strip_accents=False)),
    "wordpiece without chinese": changed("wordpiece", normalizer=normalizers.BertNormalizer(handle_chinese_chars=False)),
    "wordpiece with whole words": changed("wordpiece", AddedToken("word_only", single_word=True), special("<extra>", rstrip=True)),
    "roberta": changed(
        "bpe", special("<mask>", lstrip=True), pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True), post_processor=ROBERTA
    ),
    "bpe with runs of spaces": changed(
        "bpe", AddedToken("  "), AddedToken("   "), special("<extra>", rstrip=True, lstrip=True), normalizer=normalizers.NFC()
    ),
    "digits": changed("bpe", pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel()])),
    "xlm-roberta": changed(
        "unigram",
        special("<mask>", lstrip=True),
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ),
    "albert": changed(
        "unigram", normalizer=normalizers.Sequence([*LEGACY, normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")])
    ),
    "t5": changed(
        "unigram",
        normalizer=normalizers.Sequence([normalizers.Nmt(), normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), "▁")]),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first"),
    ),
    "deberta": changed(
        "unigram", pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()])
    ),
    "merging": merging,
    "words": changed("wordpiece", normalizer=normalizers.Lowercase(), pre_tokenizer=pre_tokenizers.Whitespace()),
    "left": truncating_left,
    "pattern": changed("bpe", pre_tokenizer=pre_tokenizers.Split(Regex(r"\p{L}+|[^\p{L}]+\s*"), "isolated")),
    "stories": lambda: Tokenizer.from_file(str(STORIES / "tokenizer.json")),
    "bert-tiny": lambda: Tokenizer.from_file(str(BERT_TINY / "tokenizer.json")),
}
UNCUTTABLE = {"left", "pattern"}
REAL = {
    "stories": needs_shared(STORIES / "tokenizer.json"),
    "bert-tiny": needs_shared(BERT_TINY / "tokenizer.json"),
}
KINDS = [pytest.param(kind, marks=REAL.get(kind, ())) for kind in MADE]


def encoder(kind: str, length: int, *, first: int, rows: int | None = None, most: int | None = None) -> TextEncoder:
    tokenizer = Tokenizer.from_str(serialized(kind))
    cutter = TextCutter(tokenizer, most_characters=most, first_prefix=first, characters_per_token=0)
    assert cutter.can_cut == (kind not in UNCUTTABLE)
    return TextEncoder(tokenizer, max_length=length, names=["input_ids"], padding={}, most_rows=rows, cutter=cutter)


def seen(encoding: Encoding, *, offsets: bool) -> dict[str, object]:
    """Everything of an encoding that a task reads."""
    found = {field: getattr(encoding, field) for field in FIELDS if offsets or field != "offsets"}
    return found | {"overflowing": bool(encoding.overflowing)}


def whole(
    kind: str, texts: list[Any], length: int, strategy: str, *, offsets: bool, special_tokens: bool = True
) -> list[dict[str, object]] | str:
    """What the library makes of the whole texts, or its error."""
    tokenizer = Tokenizer.from_str(serialized(kind))
    tokenizer.no_padding()
    direction = (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.enable_truncation(length, strategy=strategy, direction=direction)
    try:
        encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
        encodings = encode(texts, add_special_tokens=special_tokens)
    except Exception as error:
        assert "too short" in str(error)
        return "refused"
    return [seen(encoding, offsets=offsets) for encoding in encodings]


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Characters that each cut of a text left out."""
    found: list[int] = []
    cut = TextCutter.cut

    def recorded(self: TextCutter, texts: Any, **how: Any) -> Any:
        after = cut(self, texts, **how)
        found.extend(
            len("".join(old)) - len("".join(new))
            for old, new in zip(texts, after, strict=True)
            if len(old) != len(new) or old != new
        )
        return after

    monkeypatch.setattr(TextCutter, "cut", recorded)
    yield found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_cut_texts_have_the_tokens_of_whole_ones(kind: str, seed: int, cuts: list[int]) -> None:
    generator = random.Random(f"{kind} {seed}")
    for _ in range(40):
        length, first, offsets = generator.randint(4, 24), generator.choice((1, 8, 30, 100)), generator.random() < 0.7
        texts = [fuzzed(generator, generator.choice((3, 30, 200))) for _ in range(generator.randint(1, 5))]
        found = encoder(kind, length, first=first).encode(texts, offsets=offsets)
        assert [seen(one, offsets=offsets) for one in found] == whole(kind, texts, length, "longest_first", offsets=offsets)
    assert bool(cuts) == (kind not in UNCUTTABLE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.long
def test_cut_pairs_have_the_tokens_of_whole_ones(kind: str, strategy: str, cuts: list[int]) -> None:
    generator = random.Random(f"{kind} {strategy}")
    answered = 0
    for _ in range(40):
        length, first, offsets = generator.randint(6, 30), generator.choice((1, 8, 30, 100)), generator.random() < 0.7
        sizes = [generator.choice((1, 3, 10, 100)) for _ in range(2)]
        pairs = [(fuzzed(generator, sizes[0]), fuzzed(generator, sizes[1])) for _ in range(generator.randint(1, 2))]
        expected = whole(kind, pairs, length, strategy, offsets=offsets)
        taken = encoder(kind, length, first=first)
        if expected == "refused":
            with pytest.raises(ValueError, match=f"a row needs more than {length} tokens, even without"):
                taken.encode(pairs, offsets=offsets, strategy=strategy)
        else:
            answered += 1
            found = taken.encode(pairs, offsets=offsets, strategy=strategy)
            assert [seen(one, offsets=offsets) for one in found] == expected
        assert [seen(one, offsets=True) for one in taken.encode(["a good film"], offsets=True)] == whole(
            kind, ["a good film"], length, "longest_first", offsets=True
        ), "the encoder is as it was"
    assert answered > 5
    assert cuts or kind in UNCUTTABLE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
def test_a_request_may_ask_for_fewer_tokens_and_for_no_special_ones(kind: str, cuts: list[int]) -> None:
    """Texts and pairs in one batch, by an encoder that would keep more."""
    generator = random.Random(f"fewer {kind}")
    for _ in range(20):
        length, first, special_tokens = generator.randint(6, 24), generator.choice((1, 8, 30, 100)), generator.random() < 0.5
        texts: list[Any] = [fuzzed(generator, generator.choice((3, 30, 200))) for _ in range(3)]
        texts[generator.randint(0, 2)] = (fuzzed(generator, 100), fuzzed(generator, 100))
        expected = whole(kind, texts, length, "longest_first", offsets=False, special_tokens=special_tokens)
        if expected != "refused":
            taken = encoder(kind, 40, first=first)
            found = taken.encode(texts, max_length=length, special_tokens=special_tokens)
            assert [seen(one, offsets=False) for one in found] == expected
            assert [one.ids for one in taken.encode(["a good film"])] == [
                one.ids for one in encoder(kind, 40, first=first).encode(["a good film"])
            ], "the encoder is as it was"
    assert bool(cuts) == (kind not in UNCUTTABLE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
def test_what_is_too_long_is_refused_as_of_whole_texts(kind: str, cuts: list[int]) -> None:
    """With truncation off, and windows: a prefix says that there is too much, never that there is not."""
    generator = random.Random(kind)
    outcomes = []
    for _ in range(100):
        length, first, rows = generator.randint(8, 24), generator.choice((1, 8, 30, 100)), generator.randint(1, 8)
        pair = generator.random() < 0.5
        text = fuzzed(generator, generator.choice((2, 20, 100)))
        row: Text = (fuzzed(generator, generator.choice((1, 3, 30))), text) if pair else text
        limited, free = (encoder(kind, length, first=each, rows=most) for each, most in ((first, rows), (10**9, None)))
        plain = whole(kind, [row], length, "longest_first", offsets=True)
        try:
            answer: object = [seen(one, offsets=True) for one in limited.encode([row], truncation=False, offsets=True)]
        except ValueError as error:
            assert "row 0 is longer than" in str(error)
            answer = "too long"
        assert answer == ("too long" if plain[0]["overflowing"] else plain)  # type: ignore[index]
        stride = generator.randint(0, length // 2 - 3)
        made = [_windows(each, row, stride) for each in (limited, free)]
        if isinstance(made[1], list) and len(made[1]) > rows:
            assert made[0] == "too many"
        else:
            assert made[0] == made[1]
        outcomes.append(made[0] if isinstance(made[0], str) else "made")
    assert {"made", "too many", "no room"} == set(outcomes)


def _windows(taken: TextEncoder, row: Text, stride: int) -> list[dict[str, object]] | str:
    try:
        return [seen(one, offsets=True) for one in taken.windows([row], stride=stride)[0]]
    except TooManyRowsError:
        return "too many"
    except ValueError as error:
        assert "no window of" in str(error) or "has no room" in str(error)
        return "no room"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_the_pipeline_of_transformers_keeps_the_same_tokens(kind: str) -> None:
    fast = make_tokenizer(kind)
    generator = random.Random(kind)
    for _ in range(30):
        texts = [fuzzed(generator, 200) for _ in range(2)]
        pairs = [(fuzzed(generator, 100), fuzzed(generator, 100)) for _ in range(2)]
        taken = encoder(kind, 20, first=30)
        expected = fast(texts, truncation=True, max_length=20)["input_ids"]
        assert [one.ids for one in taken.encode(texts)] == expected
        expected = fast([one for one, _ in pairs], [other for _, other in pairs], truncation=True, max_length=20)["input_ids"]
        assert [one.ids for one in taken.encode(pairs)] == expected


@pytest.mark.parametrize(
    "split",
    [
        None,
        pre_tokenizers.Split(" ", "removed"),
        pre_tokenizers.ByteLevel(use_regex=False),
        pre_tokenizers.Metaspace(split=False),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation("merged_with_next"), pre_tokenizers.Whitespace()]),
        pre_tokenizers.Digits(),
    ],
)
def test_a_tokenizer_that_may_look_beyond_a_space_is_not_cut(split: Any) -> None:
    tokenizer = make_tokenizer("bpe").backend_tokenizer
    assert TextCutter(tokenizer).can_cut
    if split is None:
        tokenizer = built(tokenizer.model, None, None)
    else:
        tokenizer.pre_tokenizer = split
    assert not TextCutter(tokenizer).can_cut


@pytest.mark.parametrize(
    ("normalizer", "added"),
    [
        (normalizers.Replace(Regex(r"\s+"), " "), ()),
        (normalizers.Replace("a b", "c"), ()),
        (normalizers.Replace("x", " "), ()),
        (normalizers.Replace("x", ""), ()),
        (normalizers.Replace(" ", "▁"), ()),
        (normalizers.ByteLevel(), ()),
        (None, (AddedToken("New York"),)),
        (None, (AddedToken("word\n"),)),
    ],
)
def test_what_joins_words_forbids_cutting(normalizer: Any, added: tuple[AddedToken, ...]) -> None:
    assert not TextCutter(changed("wordpiece", *added, **({"normalizer": normalizer} if normalizer else {}))()).can_cut


def test_a_merging_model_is_cut_only_where_no_token_holds_the_end_of_a_word_and_a_space() -> None:
    tokenizer = merging()
    assert TextCutter(tokenizer).can_cut
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"]["a▁"] = len(state["model"]["vocab"])
    state["model"]["merges"].append(["a", "▁"])
    assert not TextCutter(Tokenizer.from_str(json.dumps(state))).can_cut


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_kept_tokens_are_those_of_the_library(strategy: str) -> None:
    tokenizer = built(models.WordLevel({"a": 0}, "a"), None, pre_tokenizers.WhitespaceSplit())
    for room in (1, 2, 5, 6):
        tokenizer.enable_truncation(room, strategy=strategy)
        for first in range(9):
            for second in range(9):
                expected = kept_tokens(first, second, room, strategy)
                try:
                    found = tokenizer.encode("a " * first, "a " * second).type_ids
                except Exception as error:
                    assert "too short" in str(error)
                    assert expected[STRATEGIES.index(strategy) - 1] == 0
                else:
                    assert (found.count(0), found.count(1)) == expected


@pytest.mark.parametrize("direction", ["left", "right"])
def test_an_encoding_without_overflow_has_the_tokens_of_a_truncated_one(direction: str) -> None:
    tokenizer = built(models.WordLevel({"a": 0}, "a"), None, pre_tokenizers.WhitespaceSplit())
    for length in range(1, 12):
        for kept in range(1, 14):
            text = "".join(f"{'a' * (number + 1)} " for number in range(length))
            truncated = tokenizer.encode(text)
            truncated.truncate(kept, direction=direction)
            found = without_overflow(tokenizer.encode(text), kept, direction=direction)
            assert found.offsets == truncated.offsets and not found.overflowing


@pytest.mark.parametrize(
    ("kind", "row", "text"),
    [
        ("wordpiece", " " * 10_001, "a text of 10001 characters, of which the first 10000 do not decide what the model gets"),
        ("wordpiece", "x" * 20_000, "a text of 20000 characters"),
        ("unigram", "字" * 20_000, "a text of 20000 characters"),
        ("pattern", "good film " * 2_000, "a text of 20000 characters"),
        ("bpe", ("good", "\n" * 10_001), "a text of 10001 characters"),
        ("wordpiece", ("good film " * 1_100, "good film " * 1_200), "a text of 12000 characters"),  # which one is longer?
    ],
)
def test_what_cannot_be_cut_is_refused_by_length(kind: str, row: Text, text: str) -> None:
    taken = encoder(kind, 12, first=64, rows=4, most=10_000)
    with pytest.raises(TextTooLongError, match=f"row 1 has {text}"):
        taken.encode(["film" if isinstance(row, str) else ("film", "cast"), row])
    assert len(taken.encode(["good film"])[0]) == len(encoder(kind, 12, first=64).encode(["good film"])[0]), "it is as it was"
    if isinstance(row, str):
        with pytest.raises((TextTooLongError, TooManyRowsError), match="row 0"):
            taken.windows([row], stride=1)


def test_many_rows_that_cannot_be_cut_are_refused_together() -> None:
    taken = encoder("unigram", 12, first=64, rows=8, most=1_000)
    assert len(taken.encode(["字" * 999] * 4)) == 4
    with pytest.raises(TextTooLongError, match=r"the rows have 4995 characters together .* 4000 are taken at most"):
        taken.encode(["字" * 999] * 5)
    assert len(taken.encode(["good film " * 999] * 32)) == 32, "these are cut"
    with pytest.raises(TextTooLongError, match="the rows have 4995 characters together"):
        taken.windows(["字" * 999] * 5, stride=1)
    assert len(taken.windows(["字" * 999] * 4, stride=1)[0]) == 4


@pytest.mark.parametrize("joined", ["\u0301", "\u0e33", "\uff9e", "\u200d", "\U0001f3fd"])
def test_a_text_is_not_cut_beside_a_character_that_joins_a_space(joined: str) -> None:
    taken = TextCutter(make_tokenizer("bpe").backend_tokenizer)
    assert taken._prefix(f"film {joined}" * 100, 300).text == ""
    assert taken._prefix(f"film{joined} " * 100, 300).text == ""
    assert taken._prefix(f"film {joined}" * 50 + "good film " * 50, 400).text.endswith(("good", "film"))


def test_a_text_is_not_cut_where_normalization_ends_the_word_before() -> None:
    """Without its accent, this letter is a space."""
    normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    text = "film \u037a " * 100
    plain, stripping = (TextCutter(changed("bpe", normalizer=one)()) for one in (normalizers.NFC(), normalizer))
    ends = [cutter._prefix(text, size).text[-1] for cutter in (plain, stripping) for size in (98, 99)]
    assert ends == ["\u037a", "\u037a", "m", "m"]


def test_long_text_is_cut_where_it_can_be(cuts: list[int]) -> None:
    """Chinese without spaces, lines, a mask before much text, and pairs of which one text is short."""
    for kind, row, left in (
        ("wordpiece", "这部电影" * 1_000_000, 64),
        ("bpe", "这部电影，很好看。" * 100_000, 64),
        ("bpe", "good film\n" * 100_000, 64),
        ("roberta", "good <mask> " * 100_000, 64),
        ("unigram", "good film " * 100_000, 64),
        ("merging", "good film " * 100_000, 64),
        ("wordpiece", ("good", "film " * 200_000), 68),
        ("wordpiece", ("film " * 200_000, "good film"), 73),
        ("roberta", ("film " * 200_000, "good " * 200_000), 128),  # an even number of tokens: both get half
    ):
        (found,) = encoder(kind, 12, first=64, most=10_000).encode([row])
        assert len(found) == 12 and found.overflowing
        assert cuts.pop() >= len("".join(row)) - left


def test_two_long_texts_of_a_pair_do_not_multiply() -> None:
    """The library pairs every overflowing part of one text with every one of the other: gigabytes, for 32 KB each."""
    taken = encoder("pattern", 64, first=2048)
    began = time.process_time()
    (found,) = taken.encode([("a b " * 8_192, "c d " * 8_192)])
    assert time.process_time() - began < 2
    assert len(found) == 64 and 0 < len(found.overflowing) < 10


@pytest.mark.parametrize("row", ["abc" * 9000, ("abc" * 9000, "a film"), ("", "abc" * 9000), ("abc" * 9000, "")])
def test_few_tokens_of_a_text_that_cannot_be_cut_make_few_parts(row: Text) -> None:
    """Each token that is too much would otherwise be a part of its own."""
    (found,) = encoder("bpe", 64, first=100).encode([row], max_length=8)
    assert [seen(found, offsets=False)] == whole("bpe", [row], 8, "longest_first", offsets=False)
    assert len(found.overflowing) == 1


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_short_texts_are_left_alone(kind: str) -> None:
    texts: list[Text] = ["film", "good film " * 100]
    assert encoder(kind, 12, first=cutting.FIRST_PREFIX)._cutter.cut(texts, max_length=12, strategy="longest_first") is texts
