"""Text that streams: all parts together are what the tokenizer decodes, and a stop string never shows."""

from __future__ import annotations

import random
import re

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, StopStringCriteria

from serving.runtime.generation.text_stream import Detokenizer, StopStrings, TextStream
from tests.helpers.checkpoints import make_tokenizer

WORDS = (*("a", "n", "'", "s", "t", "ve", "m", "re", "do", "not", "girl", ".", ",", "!", "?", " "), *("好", "🎉", "\ufffd"))
SPECIALS = ("<unk>", "<s>", "</s>")
LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,!?'"


def byte_fallback_tokenizer() -> Tokenizer:
    """As those of Llama: pieces of words, and a token for each byte of what has no piece."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = [*SPECIALS, *bytes_, *LETTERS, "▁girl", "▁'", "▁n", "▁.", "ve", "re", "girl", "好"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=SPECIALS[0], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return tokenizer


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind == "byte fallback":
        return PreTrainedTokenizerFast(tokenizer_object=byte_fallback_tokenizer())
    return make_tokenizer(kind)


def streamed(stream: TextStream, tokens: list[int]) -> tuple[list[str], int]:
    """The parts of the text, and the number of tokens after which it has ended."""
    parts: list[str] = []
    for token in tokens:
        stopped = stream.push(token)
        parts.append(stream.take())
        if stopped:
            break
    return [*parts, stream.finish()], len(parts)


KINDS = ("byte fallback", "bpe", "unigram", "wordpiece")


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_what_the_pipeline_decodes(kind: str) -> None:
    reference = tokenizer_of(kind)
    detokenizer = Detokenizer(reference.backend_tokenizer)
    size, generator = len(reference), random.Random(1)
    whole_at_once = several_parts = 0
    for trial in range(120):
        prompt = reference("".join(generator.choices(WORDS, k=trial % 12)), add_special_tokens=trial % 2 == 0).input_ids
        if trial % 4:
            tokens = reference(" ".join(generator.choices(WORDS, k=20)), add_special_tokens=False).input_ids
        else:
            tokens = generator.choices(range(size), k=60)  # broken characters too

        def decoded(ids: list[int]) -> str:
            return reference.decode(ids, skip_special_tokens=True)

        expected = decoded(prompt + tokens)[len(decoded(prompt)) :]
        parts, _ = streamed(TextStream(detokenizer, prompt), tokens)
        assert "".join(parts) == expected
        whole, _ = streamed(TextStream(detokenizer, prompt, streams=False), tokens)
        assert whole[-1] == expected and not any(whole[:-1])
        several_parts += sum(map(bool, parts)) > 2
        whole_at_once += 1
    assert several_parts > whole_at_once / 2, "it streams"


def test_text_comes_as_soon_as_it_is_certain() -> None:
    reference = tokenizer_of("byte fallback")
    detokenizer = Detokenizer(reference.backend_tokenizer)
    pieces = ["▁girl", "好", *(f"<0x{byte:02X}>" for byte in "🎉".encode()), "▁girl", "▁n", "t"]
    prompt, tokens = reference("girl").input_ids, reference.convert_tokens_to_ids(pieces)
    parts, _ = streamed(TextStream(detokenizer, prompt), tokens)
    assert [part for part in parts if part] == [" girl", "好", "🎉 girl", " n", "t"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_never_shows(kind: str) -> None:
    reference = tokenizer_of(kind)
    detokenizer = Detokenizer(reference.backend_tokenizer)
    generator = random.Random(3)
    found = 0

    def decoded(ids: list[int]) -> str:
        return reference.decode(ids, skip_special_tokens=True)

    for _ in range(120):
        text = " ".join(generator.choices(WORDS[:-3], k=25))
        tokens = reference(text, add_special_tokens=False).input_ids
        whole = decoded(tokens)
        stops = [whole[at : at + generator.randrange(1, 6)] for at in generator.choices(range(len(whole)), k=2)] + ["not there"]
        stops = [stop for stop in stops if stop]
        generated, count = streamed(
            TextStream(detokenizer, [], stops=StopStrings(tuple(stops), are_included=False, in_whole_text=False)), tokens
        )
        given = "".join(generated)
        ends = [decoded(tokens[:end]) for end in range(1, len(tokens) + 1)]
        first = next((end for end in ends if any(stop in end for stop in stops)), whole)
        places = [first.find(stop) for stop in stops if stop in first]
        assert given == (first[: min(places)] if places else whole)
        assert decoded(tokens[:count]) == first, "it ends with the token that completes the string"
        found += bool(places)
    assert found > 60


@pytest.mark.parametrize("kind", ["byte fallback", "bpe"])
def test_stop_strings_that_are_included_end_where_those_of_transformers_do(kind: str) -> None:

    reference = tokenizer_of(kind)
    detokenizer = Detokenizer(reference.backend_tokenizer)
    generator = random.Random(4)
    found = 0
    for _ in range(60):
        prompt = reference("girl " + " ".join(generator.choices(WORDS[:-3], k=3)), add_special_tokens=False).input_ids
        tokens = reference(" ".join(generator.choices(WORDS[:-3], k=15)), add_special_tokens=False).input_ids
        whole = reference.decode(prompt + tokens)
        at = generator.randrange(len(whole))
        stop = whole[at : at + generator.randrange(1, 5)].strip() or "girl"
        criteria = StopStringCriteria(reference, [stop])
        expected = next(
            (end for end in range(1, len(tokens)) if criteria(torch.tensor([prompt + tokens[:end]]), None)[0]), len(tokens)
        )
        parts, count = streamed(TextStream(detokenizer, prompt, stops=StopStrings((stop,))), tokens)
        assert count == expected, (stop, whole)
        assert "".join(parts) == reference.decode(prompt + tokens[:count])[len(reference.decode(prompt)) :]
        found += count < len(tokens)
    assert found > 20


CHATML = ("<|im_start|>", "<|im_end|>")


def chat_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    reference = tokenizer_of(kind)
    reference.add_special_tokens({"additional_special_tokens": list(CHATML)})
    return reference


def ends_at(criteria: StopStringCriteria, prompt: list[int], tokens: list[int]) -> int:
    """The number of generated tokens after which transformers stops."""
    ends = range(1, len(tokens) + 1)
    return next((end for end in ends if criteria(torch.tensor([prompt + tokens[:end]]), None)[0]), len(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_that_names_a_special_token_ends_the_text(kind: str) -> None:
    reference = chat_tokenizer(kind)
    detokenizer = Detokenizer(reference.backend_tokenizer)
    start, end = reference.convert_tokens_to_ids(list(CHATML))
    girl = reference("girl", add_special_tokens=False).input_ids
    prompt = [*girl, start, *girl]
    behind = " <|im_end|>" if kind == "wordpiece" else "<|im_end|>"
    tokens = [*girl, *girl, end, *girl]
    for stop in ("<|im_end|>", f"girl{behind}", f"l{behind}", "<|im_end|>girl", "<|im_", "_end|>", f"{CHATML[0]}girl", "girlgirlg"):
        criteria = StopStringCriteria(reference, [stop])
        parts, count = streamed(TextStream(detokenizer, prompt, stops=StopStrings((stop,))), tokens)
        assert count == ends_at(criteria, prompt, tokens), stop
        visible = reference.decode(prompt + tokens[:count], skip_special_tokens=True)
        assert "".join(parts) == visible[len(reference.decode(prompt, skip_special_tokens=True)) :], "special tokens do not show"


@pytest.mark.parametrize("kind", ["byte fallback", "bpe"])
@pytest.mark.parametrize("are_included", [True, False])
def test_stop_strings_among_special_tokens_end_where_those_of_transformers_do(kind: str, are_included: bool) -> None:
    reference = chat_tokenizer(kind)
    detokenizer = Detokenizer(reference.backend_tokenizer)
    special = reference.convert_tokens_to_ids([*CHATML, "</s>" if kind == "byte fallback" else CHATML[0]])
    girl = reference("girl", add_special_tokens=False).input_ids[-1]
    generator = random.Random(5)
    found = with_special = 0

    def visible(ids: list[int]) -> str:
        return reference.decode(ids, skip_special_tokens=True)

    def mixed(count: int) -> list[int]:
        words = reference(" ".join(generator.choices(WORDS[:-3], k=count)), add_special_tokens=False).input_ids
        return [one for token in words for one in ([token, generator.choice(special)] if generator.random() < 0.3 else [token])]

    def pieces(ids: list[int]) -> list[str]:
        """The texts of tokens behind text."""
        return [reference.decode([girl, token])[len(reference.decode([girl])) :] for token in ids]

    for _ in range(60):
        prompt, tokens = [girl, *mixed(3)], mixed(12)
        whole = "".join(pieces(prompt + tokens))
        at = generator.randrange(5, len(whole))
        stop = whole[at : at + generator.randrange(1, 24)]
        count = ends_at(StopStringCriteria(reference, [stop]), prompt, tokens)
        parts, ours = streamed(TextStream(detokenizer, prompt, stops=StopStrings((stop,), are_included)), tokens)
        assert ours == count, (stop, whole)
        expected = visible(prompt + tokens[:count])[len(visible(prompt)) :]
        before, last = "".join(pieces(prompt + tokens[: count - 1])), "".join(pieces([tokens[count - 1]]))
        place = (before + last).find(stop, max(len(before) - len(stop) + 1, 0))
        if place >= 0 and not are_included:
            ids = prompt + tokens[:count]
            marked = "".join("\0" * len(one) if token in special else one for token, one in zip(ids, pieces(ids), strict=True))
            cut = len(marked[place:].replace("\0", ""))
            expected = expected[: max(len(expected) - cut, 0)]
        assert "".join(parts) == expected
        found += count < len(tokens)
        with_special += count < len(tokens) and "|" in stop
    assert found > 20 and with_special > 8


def test_a_stop_string_of_vllm_is_searched_in_the_text_of_the_answer() -> None:
    """As vLLM does with ``skip_special_tokens``: special tokens, which are not in the text, do not stop it or stand between."""
    reference = chat_tokenizer("bpe")
    detokenizer = Detokenizer(reference.backend_tokenizer)
    _, end = reference.convert_tokens_to_ids(list(CHATML))
    girl = reference("girl", add_special_tokens=False).input_ids
    for stop, expected in [("<|im_end|>", "girlgirl"), ("lg", "gir"), ("irl", "g")]:
        stops = StopStrings((stop,), are_included=False, in_whole_text=False)
        parts, _ = streamed(TextStream(detokenizer, girl, stops=stops), [*girl, end, *girl])
        assert "".join(parts) == expected
    included = StopStrings(("lgir",), in_whole_text=False)
    parts, _ = streamed(TextStream(detokenizer, girl, stops=included), girl)
    assert "".join(parts) == "girl", "the prompt is not searched"


def test_text_that_may_begin_a_stop_string_waits() -> None:
    reference = chat_tokenizer("bpe")
    detokenizer = Detokenizer(reference.backend_tokenizer)
    _, end = reference.convert_tokens_to_ids(list(CHATML))
    letters = reference.convert_tokens_to_ids(list("girlsa"))
    g, i, r, _, s, a = letters
    stops = StopStrings(("girl", "s<|im_end|>a", "<|im_end|><|im_end|>r"), are_included=False)
    for prompt, tokens, expected in [
        ([], [g, i, a], ["", "", "gia", ""]),
        ([a, g], [i, r, s, a], ["", "", "ir", "sa", ""]),
        ([a], [s, end, i, a], ["", "", "si", "a", ""]),
        ([a], [s, end, a], ["", "", "", ""]),
        ([a], [i, end, end, r], ["i", "", "", "", ""]),
    ]:
        assert streamed(TextStream(detokenizer, prompt, stops=stops), tokens)[0] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_may_begin_with_the_space_of_the_first_word(kind: str) -> None:
    """An encoder-decoder begins with a special token: the text of its first word has no space, but stop strings see one."""
    reference = chat_tokenizer(kind)
    detokenizer = Detokenizer(reference.backend_tokenizer)
    start = reference.convert_tokens_to_ids(CHATML[0])
    tokens = [*reference("girl", add_special_tokens=False).input_ids, *reference(" girl do", add_special_tokens=False).input_ids]
    for stop in (" girl", f"{CHATML[0]} girl", f"{CHATML[0]}girl", " ", "girl"):
        parts, count = streamed(TextStream(detokenizer, [start], stops=StopStrings((stop,))), tokens)
        assert count == ends_at(StopStringCriteria(reference, [stop]), [start], tokens), stop
        assert "".join(parts) == reference.decode(tokens[:count])


@pytest.mark.parametrize("are_included", [True, False])
def test_a_special_token_amid_single_bytes_is_found(are_included: bool) -> None:
    reference = chat_tokenizer("byte fallback")
    detokenizer = Detokenizer(reference.backend_tokenizer)
    _, end, girl, newline = reference.convert_tokens_to_ids([*CHATML, "girl", "<0x0A>"])
    for stop, count, before in [("\n<|im_end|>\n", 4, "girl"), ("\n<|im_end|>girl", 6, "girl\n"), ("girl\n<|im_end|>", 3, "")]:
        tokens = [girl, newline, end, newline, end, girl]
        stream = TextStream(detokenizer, [girl], stops=StopStrings((stop,), are_included))
        parts, ended = streamed(stream, tokens)
        assert ended == count == ends_at(StopStringCriteria(reference, [stop]), [girl], tokens)
        whole = reference.decode([girl, *tokens[:count]], skip_special_tokens=True)[len("girl") :]
        assert "".join(parts) == (whole if are_included else before)


def test_a_stop_string_of_single_bytes_ends_at_once() -> None:
    reference = tokenizer_of("byte fallback")
    detokenizer = Detokenizer(reference.backend_tokenizer)
    newline = reference.convert_tokens_to_ids("<0x0A>")
    stream = TextStream(detokenizer, [], stops=StopStrings(("\n",), are_included=False))
    girl = reference.convert_tokens_to_ids("girl")
    assert [stream.push(girl), stream.push(newline), stream.push(girl)] == [False, True, True]
    assert stream.take() + stream.finish() == "girl"
    assert re.fullmatch("girl", reference.decode([girl]))
