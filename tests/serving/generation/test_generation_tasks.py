"""The tasks whose models generate: their settings, the options of a request, and the client's forms. No server."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from serving.call_options import parse_call_options
from serving.generation_request import TextRequest
from serving.pipeline_call import PipelineCall
from serving.runtime.tasks import load_encoder, load_served
from serving.runtime.tasks._clean_up import TextCleaner
from serving.runtime.tasks._generation import GenerationTask
from serving.runtime.tasks.summarization import Summarization
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.tasks.translation import Translation

DEFAULTS: dict[str, Any] = {"max_new_tokens": 256, "do_sample": True, "temperature": 0.7, "eos_token_id": 2}
WRITER = TextGeneration(vocab_size=100, generation=DEFAULTS, chat=True)
SUMMARIZER = Summarization(vocab_size=100, decoder_start_token_id=0, generation={"max_new_tokens": 256, "num_beams": 4})
NLLB = Translation(vocab_size=100, decoder_start_token_id=0, languages={"eng": 5, "deu": 6}, tokenizer_language="eng")
CHAT = [{"role": "user", "content": "Hi"}]
DEEP = reduce(lambda inner, _: [inner], range(5_000), [0])
"""Lists in lists, more than Python writes as JSON."""
PREFILL = [*CHAT, {"role": "assistant", "content": "Well"}]


@pytest.mark.parametrize("task", [WRITER, SUMMARIZER, NLLB], ids=lambda task: task.name)
def test_settings_survive_being_written_and_read(task: GenerationTask) -> None:
    assert load_served(task.name, task.to_settings()) == task
    with pytest.raises(ValueError, match="generate their answers token by token"):
        load_encoder(task.name, task.to_settings())


def test_settings_of_another_type_are_refused_by_their_names() -> None:
    with pytest.raises(ValueError, match="setting generation of text-generation"):
        load_served("text-generation", {"vocab_size": 9, "generation": [1]})
    with pytest.raises(ValueError, match="setting languages of translation"):
        load_served("translation", {"vocab_size": 9, "decoder_start_token_id": 0, "languages": {"en": "5"}})


def test_options_of_a_request_come_before_the_defaults() -> None:
    chosen = WRITER.with_options({"max_length": 30, "eos_token_id": "[3, 4]", "do_sample": False, "prefix": "So: "})
    options = chosen.generation_options
    assert (options.max_new_tokens, options.max_length, options.eos_token_id, options.do_sample) == (None, 30, (3, 4), False)
    assert chosen.prefix == "So: " and WRITER.prefix == ""
    assert WRITER.with_options({}).generation_options.max_new_tokens == 256


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": 1}, "^option colour is unknown or not supported$"),
        ({"temperture": 1}, r"^option temperture is unknown or not supported; did you mean temperature\?$"),
        ({"trunctation": True}, r"did you mean truncation\?$"),
        ({"image": "a"}, r"^option image is unknown or not supported$"),
        ({"allowed_token_ids": [1]}, r"^option allowed_token_ids is unknown or not supported$"),
        ({"detokenize": False}, r"^option detokenize is not supported: only true is accepted"),
        ({"priority": 1}, r"^option priority is not supported: only 0 is accepted"),
        ({"x" * 10_000: 1}, "^option x{80} is unknown or not supported$"),
        ({"typical_p": 0.5}, "option typical_p is not supported"),
        ({"top_k": "many"}, "option top_k must be a whole number"),
        ({"eos_token_id": 100}, "option eos_token_id names token 100"),
        ({"truncation": 1}, "option truncation must be true or false"),
        ({"handle_long_generation": "cut"}, "option handle_long_generation must be hole, not 'cut'"),
        ({"bad_words_ids": "[[3"}, "option bad_words_ids must be a list in JSON"),
    ],
)
def test_bad_options_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRITER.with_options(given)


def test_a_model_of_many_languages_needs_two() -> None:
    chosen = NLLB.with_options({"src_lang": "eng", "tgt_lang": "deu"})
    assert chosen.generation_options.forced_bos_token_id == 6
    with pytest.raises(TypeError, match=r"option forced_bos_token_id .* give tgt_lang"):
        NLLB.with_options({"src_lang": "eng", "tgt_lang": "deu", "forced_bos_token_id": 7})
    one = replace(NLLB, languages={}).with_options({"forced_bos_token_id": 7})
    assert one.generation_options.forced_bos_token_id == 7
    with pytest.raises(ValueError, match="src_lang and tgt_lang are needed"):
        NLLB.with_options({"src_lang": "eng"})
    with pytest.raises(KeyError, match="option tgt_lang must be one of deu, eng"):
        NLLB.with_options({"src_lang": "eng", "tgt_lang": "fra"})


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, None),
        ({"return_full_text": True}, "FULL_TEXT"),
        ({"return_full_text": False}, "NEW_TEXT"),
        ({"return_tensors": False}, "TENSORS"),
        ({"return_type": "NEW_TEXT", "return_full_text": True}, "NEW_TEXT"),
    ],
)
def test_what_an_answer_shows(given: dict[str, Any], kind: str | None) -> None:
    assert WRITER.sanitize_parameters(given) == ({}, {} if kind is None else {"return_type": kind})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"return_full_text": True, "return_tensors": True}, "return_full_text excludes return_tensors"),
        ({"return_text": True, "return_tensors": True}, "return_text excludes"),
        ({"return_type": 7}, "return_type must be one of FULL_TEXT, NEW_TEXT, TENSORS"),
        ({"skip_special_tokens": False}, "skip_special_tokens is not supported"),
        ({"padding": "max_length"}, "padding is not supported"),
        ({"truncation": "only_second"}, "truncation must be"),
        ({"streamer": object()}, "option streamer is not supported: use stream_text"),
        ({"bad_words_ids": [object()]}, "option bad_words_ids must be a list of numbers or strings"),
        ({"bad_words_ids": [DEEP]}, "option bad_words_ids is nested too deeply, contains itself"),
        ({"eos_token_id": [10**5000]}, "option eos_token_id .* has a number with too many digits"),
    ],
)
def test_options_of_the_pipeline_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRITER.sanitize_parameters(given)


@pytest.mark.parametrize(
    ("task", "given"),
    [
        (WRITER, {"prefix": "a\ud800"}),
        (WRITER, {"stop_sequence": "\ud800"}),
        (WRITER, {"chat_template_kwargs": {"x": "\ud800"}}),
        (SUMMARIZER, {"stop_sequence": "\ud800"}),
    ],
    ids=str,
)
def test_an_option_that_utf8_cannot_encode_is_refused(task: GenerationTask, given: dict[str, Any]) -> None:
    for read in (
        lambda: PipelineCall.read(task, ("Hi",), given, {}),
        lambda: PipelineCall.read(task, ("Hi",), {}, given),
        lambda: PipelineCall.raw(task, task.sanitize_parameters(given)[0], {}),
    ):
        with pytest.raises(ValueError, match=f"option {next(iter(given))} holds half of a surrogate pair"):
            read()


def test_a_minimum_above_the_maximum_is_warned_of_as_by_the_library() -> None:
    for names in (("min_new_tokens", "max_new_tokens"), ("min_tokens", "max_tokens"), ("min_tokens", "max_new_tokens")):
        with pytest.warns(UserWarning, match=rf"{names[0]} \(10\) is larger than {names[1]} \(5\), which ends the answer"):
            WRITER.sanitize_parameters(dict(zip(names, (10, 5), strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WRITER.sanitize_parameters({"min_new_tokens": 5, "max_new_tokens": 5})
        WRITER.sanitize_parameters({"min_new_tokens": 5, "max_new_tokens": None})


def test_options_travel_as_request_parameters() -> None:
    given = {"eos_token_id": [2, np.int64(3)], "top_k": np.int64(4), "early_stopping": "true", "tokenizer": object()}
    assert WRITER.sanitize_parameters(given)[0] == {"eos_token_id": "[2, 3]", "top_k": 4, "early_stopping": True}
    own = dict.fromkeys(("truncation", "prefix", "streamer", "max_length"))
    given = {"top_k": None, "seed": None, "stop": None, "add_special_tokens": None, **own}
    expected = {"top_k": None, "seed": None, "stop": "[]", "add_special_tokens": True}
    assert WRITER.sanitize_parameters(given)[0] == expected, "the pipeline's own options are as they were"
    assert WRITER.sent_parameters(expected) == {"top_k": "null", "seed": "null", "stop": "[]", "add_special_tokens": True}
    assert WRITER.sanitize_parameters({"truncation": "longest_first"})[0] == {"truncation": True}
    with pytest.raises(ValueError, match="return_tensors is not supported by summarization"):
        SUMMARIZER.sanitize_parameters({"return_tensors": True})


def test_max_length_is_ignored_as_by_the_pipeline() -> None:
    with pytest.warns(UserWarning, match="max_length is ignored, as by transformers.pipeline"):
        assert sent(WRITER, {"max_length": 9}) == {}
    with pytest.warns(UserWarning, match="because max_new_tokens is 4"):
        assert sent(WRITER, {}, max_length=9, max_new_tokens=4) == {"max_new_tokens": 4}
    assert sent(WRITER, {"max_length": 9, "max_new_tokens": None}) == {"max_length": 9, "max_new_tokens": None}


def sent(task: GenerationTask, given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """What a call sends."""
    return dict(PipelineCall.read(task, ("Hi",), given, defaults)[1].parameters)


@pytest.mark.parametrize("task", [WRITER, SUMMARIZER], ids=lambda task: task.name)
def test_a_length_of_the_construction_replaces_the_new_tokens_of_the_pipeline(task: GenerationTask) -> None:
    assert sent(task, {}, max_length=9) == {"max_length": 9}
    assert sent(task, {}, max_length=9, max_new_tokens=256) == {"max_length": 9}
    assert sent(task, {"max_length": 7}, max_length=9) == {"max_length": 7}
    assert sent(task, {"max_tokens": 3}, max_length=9) == {"max_length": 9, "max_tokens": 3}
    with pytest.warns(UserWarning, match="max_length is ignored"):
        assert sent(task, {}, max_length=20) == {}, "the library's default is nobody's choice"


@pytest.mark.parametrize(("alias", "name", "one", "other"), [
    ("max_tokens", "max_new_tokens", 2, 3),
    ("min_tokens", "min_new_tokens", 2, 3),
    ("n", "num_return_sequences", 1, 1),
    ("stop", "stop_strings", "a", "b"),
])  # fmt: skip
def test_an_option_of_a_call_comes_first_by_either_name(alias: str, name: str, one: Any, other: Any) -> None:
    for first, second in ((alias, name), (name, alias)):
        found = sent(WRITER, {second: other}, **{first: one})
        assert found == sent(WRITER, {second: other})
        assert PipelineCall.raw(WRITER, found, {first: one}).parameters == found
        with pytest.raises(ValueError, match=f"options {name} and {alias} are the same: give one"):
            sent(WRITER, {first: one, second: other})
    assert sent(WRITER, {"max_tokens": None}, max_new_tokens=3)["max_new_tokens"] == 3, "no limit was given"
    assert sent(WRITER, {"max_new_tokens": None}, max_tokens=3) == {"max_new_tokens": None}


def test_null_says_that_nothing_was_given() -> None:
    names = ("pad_token_id", "bos_token_id", "chat_template_kwargs", "truncation", "messages", "handle_long_generation")
    for given in (dict.fromkeys(names), WRITER.parsed(dict.fromkeys(names, "null"))):
        assert WRITER.with_values(given) == WRITER
    assert SUMMARIZER.with_options({"pad_token_id": "null", "bos_token_id": "null", "decoder_start_token_id": "null"}) == SUMMARIZER
    texts = WRITER.with_options({"prefix": "null", "stop_sequence": "null"})
    assert (texts.prefix, texts.stop_sequence) == ("null", "null")


def test_options_on_the_command_line_are_those_of_the_client() -> None:
    assert parse_call_options(WRITER, {"pad_token_id": "null", "max_new_tokens": "null"}) == {
        "pad_token_id": None,
        "max_new_tokens": None,
    }
    given = {"use_cache": "false", "logprobs": "false", "chat_template_kwargs": "null", "detokenize": "true"}
    parse_call_options(WRITER, given)
    with pytest.raises(ValueError, match="option logprobs is not supported: only false or null is accepted"):
        parse_call_options(WRITER, {"logprobs": "3"})
    with pytest.raises(ValueError, match="has no option messages"):
        parse_call_options(WRITER, {"messages": "true"})


@pytest.mark.parametrize("text", ["[]", '["a"]', "12", "null", "true", '"a"', "a"])
@pytest.mark.parametrize("name", ["stop", "stop_strings"])
def test_a_stop_string_that_is_json_is_a_text(name: str, text: str) -> None:
    for given in (text, [text]):
        parameters = WRITER.sent_parameters(WRITER.sanitize_parameters({name: given})[0])
        assert TextRequest.of("x", [b"a"], parameters).options == {name: [text]}
        assert WRITER.with_options(parameters).generation_options.stop_strings == (text,)  # type: ignore[arg-type]
    assert WRITER.with_values({name: text}).generation_options.stop_strings == (text,)


@pytest.mark.parametrize("task", [WRITER, SUMMARIZER], ids=lambda task: task.name)
def test_none_of_a_call_undoes_a_default_of_the_client(task: GenerationTask) -> None:
    defaults = {"top_k": 5, "bad_words_ids": [[1]], "stop_strings": "x", "num_beams": 1}
    given = {"top_k": None, "bad_words_ids": None, "stop_strings": None, "max_new_tokens": None}
    _, call = PipelineCall.read(task, ("Hi",), given, defaults)
    sent = call.request([("Hi",)])[1]
    options = task.with_options(sent).generation_options  # type: ignore[arg-type]
    assert (options.top_k, options.bad_words_ids, options.stop_strings, options.max_new_tokens) == (0, (), (), None)


def test_the_pipelines_of_encoder_decoders_need_a_maximum_length() -> None:
    with pytest.raises(TypeError, match="option max_length must be a whole number"):
        PipelineCall.read(SUMMARIZER, ("Hi",), {"max_length": None, "max_new_tokens": None}, {})
    assert PipelineCall.read(WRITER, ("Hi",), {"max_length": None}, {})


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ([], IndexError),
        ([[]], IndexError),
        (None, TypeError),
        ([1], TypeError),
        (("a", "b"), TypeError),
        ({"text": "a"}, TypeError),
        (["a", CHAT], TypeError),
        ([CHAT, "a"], ValueError),
        ([{"role": "user"}], ValueError),
    ],
)
def test_bad_inputs_raise_what_the_pipeline_raises(inputs: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        WRITER.parse_inputs(inputs)


def test_a_chat_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="a chat is nested too deeply, contains itself"):
        WRITER.parse_inputs([{"role": "user", "content": DEEP}])


def test_whole_numbers_fit_into_a_request_parameter() -> None:
    assert PipelineCall.read(WRITER, ("a",), {"seed": 2**64 - 1}, {})[1].parameters == {"seed": 2**64 - 1}, "it travels as JSON"
    assert PipelineCall.read(SUMMARIZER, ("a",), {"seed": 2**63 - 1}, {})[1].parameters == {"seed": 2**63 - 1}
    with pytest.raises(ValueError, match="option seed must be 9223372036854775807 or less, not 9223372036854775808"):
        PipelineCall.read(SUMMARIZER, ("a",), {"seed": 2**63}, {})


def test_a_chat_needs_a_template() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        TextGeneration(vocab_size=9).parse_inputs(CHAT)


@pytest.mark.parametrize(
    ("inputs", "options", "text"),
    [
        ("Hello ,", {}, "Hello , A"),
        ("Hello ", {}, "Hello  A"),
        ("Hello", {"return_type": "NEW_TEXT"}, " A"),
        (CHAT, {}, [*CHAT, {"role": "assistant", "content": " A"}]),
        (PREFILL, {}, [*CHAT, {"role": "assistant", "content": "Well A"}]),
        (PREFILL, {"continue_final_message": False}, [*PREFILL, {"role": "assistant", "content": " A"}]),
        (CHAT, {"continue_final_message": True}, [{"role": "user", "content": "Hi A"}]),
    ],
)
def test_the_input_stands_in_front(inputs: object, options: dict[str, Any], text: object) -> None:
    rows = WRITER.parse_inputs(inputs)
    assert WRITER.add_inputs([[{"generated_text": " A"}]], rows, **options) == [[{"generated_text": text}]]


@pytest.mark.parametrize("before", ["", "Hello ,", "It ", "It '", "A ' B n"])
@pytest.mark.parametrize("text", [" 'm . A", "' s n't 've ' re ", " ' ' s.  , , x 'y' ", ". ?"])
def test_spaces_are_cleaned_up_as_the_pipeline_does(before: str, text: str) -> None:
    clean = PreTrainedTokenizerBase.clean_up_tokenization
    expected = clean(before + text)[len(clean(before)) :]
    whole, pieces = TextCleaner(before), TextCleaner(before)
    assert whole.clean(text, final=True) == expected
    assert "".join(pieces.clean(one, final=False) for one in text) + pieces.clean("", final=True) == expected


def test_a_chat_is_sent_as_messages() -> None:
    rows, parameters = WRITER.request_rows(WRITER.parse_inputs(CHAT))
    assert (json.loads(rows[0][0]), parameters) == (CHAT, {"messages": True})
    assert WRITER.request_rows(WRITER.parse_inputs("Hi")) == ([("Hi",)], {})


def test_tokens_of_several_sequences_are_padded() -> None:
    answers = {"token_ids": np.array([7, 8, 1, 2, 7, 8, 3]), "num_output_tokens": np.array([2, 1])}
    found = WRITER.format_answers(answers, return_type="TENSORS")
    assert found == [[{"generated_token_ids": [7, 8, 1, 2]}, {"generated_token_ids": [7, 8, 3, 2]}]]


def test_forms_of_summaries() -> None:
    answers = {"GENERATED": np.array([[b"a ."], [b"b"]], dtype=object)}
    rows = SUMMARIZER.format_answers(answers)
    assert SUMMARIZER.format_result(["x", "y"], rows, {}) == [{"summary_text": "a ."}, {"summary_text": "b"}]
    assert SUMMARIZER.format_result("x", rows, {}) == [{"summary_text": "a ."}]
    assert SUMMARIZER.format_answers(answers, clean_up_tokenization_spaces=True)[0] == [{"summary_text": "a."}]
    two = SUMMARIZER.format_answers({"GENERATED": np.array([[b"a", b"b"]], dtype=object)})
    assert SUMMARIZER.format_result(["x"], two, {}) == [[{"summary_text": "a"}, {"summary_text": "b"}]]
    with pytest.raises(TypeError):
        SUMMARIZER.parse_inputs(("x",))
