"""Question answering against ``transformers.pipeline``, model and all, but for the server."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.data import LabelledRows, Rows, encode_labels, hold_out, read_evaluation, tokenize_rows, write_evaluation
from export.metric import compute
from export.sources import Columns, load_rows
from export.tasks import load_task, task_names
from export.tasks.question_answering import MARGIN, TASK
from serving.artifact import read_manifest
from serving.bundle import load_bundle
from serving.errors import DataError
from serving.manifests import CheckpointManifest
from serving.runtime.metadata import pack, unpack
from serving.runtime.tasks._spans import best_spans
from serving.runtime.tasks.question_answering import QuestionAnswering
from serving.runtime.tokenization import FIELDS, TextEncoder
from serving.runtime.types import Arrays, Features
from tests.helpers import answering
from tests.helpers.checkpoints import TOKENIZERS, make_config, make_tokenizer, randomize
from tests.helpers.parity import assert_same
from tests.helpers.shared import BERT_TINY, SQUAD, needs_shared

Run = Callable[[Arrays], Arrays]
Asked = Callable[..., list[Any]]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # the pipeline's own
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
]
TOLERANCE = 1e-3
OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 3},
    {"align_to_words": False},
    {"align_to_words": False, "top_k": 2, "max_answer_len": 3},
    {"max_seq_len": 40, "doc_stride": 10, "handle_impossible_answer": True},
    {"max_seq_len": 32, "doc_stride": 4, "top_k": 2, "max_question_len": 1},
    {"max_answer_len": 500, "top_k": 4},
]


def task() -> TASK:
    return TASK(served=QuestionAnswering())


def asker(encoder: TextEncoder, run: Run) -> Asked:
    """What the served steps do with rows, without the server; windows run in batches, so that they are padded."""

    def ask(rows: list[dict[str, str]], **given: Any) -> list[Any]:
        task = QuestionAnswering().with_options(given)
        columns = [[row["question"] for row in rows], [row["context"] for row in rows]]
        features = task.preprocess(columns, encoder)
        mapping = features.origins.sample_mapping
        unpacked = unpack([pack(mapping, np.zeros_like(mapping), features.origins.metadata)])
        origins, counts = unpacked.origins, unpacked.request_rows
        assert counts == [len(rows)]
        answers = task.postprocess(outputs(features, encoder, run), origins)
        assert answers["ANSWER"].shape == answers["START"].shape == (len(rows), 1)
        return task.format_answers(answers)

    return ask


def outputs(features: Features, encoder: TextEncoder, run: Run) -> Arrays:
    longest = max(map(len, features.encodings))
    parts: dict[str, list[Any]] = {name: [] for name in TASK.heads}
    for start in range(0, len(features.encodings), 5):
        for name, values in run(encoder.arrays(features.encodings[start : start + 5])).items():
            parts[name].append(np.pad(values, ((0, 0), (0, longest - values.shape[1])), constant_values=9))  # to be passed over
    return {name: np.concatenate(values) for name, values in parts.items()}


def pytorch(model: Any) -> Run:
    import torch

    def run(feed: Arrays) -> Arrays:
        with torch.inference_mode():
            found = model(**{name: torch.from_numpy(values) for name, values in feed.items()})
        return {name: found[name].numpy() for name in TASK.heads}

    return run


def pipeline_of(folder: Path) -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)
    return transformers.pipeline("question-answering", model=str(folder), tokenizer=str(folder))


def asker_of(pipeline: Any, limit: int) -> Asked:
    """Of the pipeline's own model."""
    tokenizer = pipeline.tokenizer
    names = [name for name in tokenizer.model_input_names if name in FIELDS]
    encoder = TextEncoder(tokenizer.backend_tokenizer, max_length=limit, names=names, padding={"input_ids": tokenizer.pad_token_id})
    return asker(encoder, pytorch(pipeline.model))


def expected(pipeline: Any, rows: list[dict[str, str]], **given: Any) -> list[Any]:
    return [pipeline(**row, **given) for row in rows]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Of all lengths, in all scripts, and with special tokens written out."""
    strange = [{"question": "is the film", "context": text} for text in answering.STRANGE_TEXTS]
    odd = [
        {"question": "was [CLS] this <s> story", "context": "the film was superb and the film was dull"},
        {"question": "?", "context": "word " * 300},
    ]
    return [*answering.texts(12, seed=4), *strange, *odd]


def enough(given: dict[str, Any], row: dict[str, str]) -> bool:
    """Whether the text has so many different answers that the pipeline need not fill up with such of probability 0."""
    return given.get("top_k", 1) == 1 or len(set(row["context"].split())) > 4


# -- against the pipeline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [name for name in TOKENIZERS if name != "modernbert"])
def test_equals_the_pipeline_for_every_family(architecture: str, rows: list[dict[str, str]], tmp_path: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    tokenizer = make_tokenizer(TOKENIZERS[architecture])
    model = AutoModelForQuestionAnswering.from_config(make_config(architecture, tokenizer))
    randomize(model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipeline = pipeline_of(tmp_path)
    taken = inspect.signature(model.forward).parameters
    pipeline.tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
    ask = asker_of(pipeline, 64)
    for given in OPTIONS:
        chosen = [row for row in rows if enough(given, row)]
        assert_same(ask(chosen, **given), expected(pipeline, chosen, **given))


@pytest.fixture(scope="module")
def trained() -> Path:
    return answering.trained()


@pytest.fixture(scope="module")
def trained_pipeline(trained: Path) -> Any:
    found = pipeline_of(trained)
    found.tokenizer.model_max_length = answering.LONGEST
    return found


@pytest.fixture(scope="module")
def ask() -> Asked:
    """The exported fp32 graph."""
    from export import graph

    bundle = load_bundle(answering.bundle())
    path = bundle.variant("fp32").path
    return asker(
        bundle.encoder(graph.input_names(path)), graph.runner(graph.session(path, threads=1), QuestionAnswering.model_outputs)
    )


@pytest.mark.parametrize("given", OPTIONS, ids=str)
def test_the_exported_graph_equals_the_pipeline(
    ask: Asked, trained_pipeline: Any, rows: list[dict[str, str]], given: dict[str, Any]
) -> None:
    chosen = [row for row in rows if enough(given, row)]
    answers = ask(chosen, **given)
    assert_same(answers, expected(trained_pipeline, chosen, **given))
    assert_same([ask([row], **given)[0] for row in chosen], answers)  # alone as among others


def test_a_document_of_ten_thousand_words(ask: Asked, trained_pipeline: Any) -> None:
    choose = random.Random(0)
    words = [choose.choice(("the", "film", "was", "this", "story", "café")) for _ in range(10_000)]
    words[7_000] = "superb"
    document = [{"question": answering.QUESTION, "context": " ".join(words)}]
    found = ask(document)
    assert found[0]["answer"] == "superb"
    assert_same(found, expected(trained_pipeline, document))


@needs_shared(SQUAD, BERT_TINY)
def test_equals_the_pipeline_on_squad(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(BERT_TINY)
    torch.nn.init.normal_(model.qa_outputs.weight, std=0.5)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BERT_TINY).save_pretrained(tmp_path)
    pipeline = pipeline_of(tmp_path)
    lines = SQUAD.read_text(encoding="utf-8").splitlines()[::10]
    rows = [{key: json.loads(line)[key] for key in ("question", "context")} for line in lines]
    for given in ({}, {"top_k": 3, "max_seq_len": 128, "doc_stride": 64}):
        assert_same(asker_of(pipeline, 512)(rows, **given), expected(pipeline, rows, **given))


# -- the parts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 12, 500])
@pytest.mark.parametrize("most", [1, 4, 15, 60])
def test_best_spans_are_those_of_the_whole_product(count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.pipelines.question_answering import decode_spans

    monkeypatch.setattr("serving.runtime.tasks._spans.CHUNK", 1000)  # several chunks
    start, end = np.random.default_rng(count).random((2, 7, 37), dtype=np.float32)
    starts, ends, scores = best_spans(start, end, count, most)
    for row in range(len(start)):
        wanted = decode_spans(start[row], end[row], count, most, np.ones((1, 37), dtype=int))
        real = np.flatnonzero(wanted[2] > 0)
        kept = np.flatnonzero(scores[row] > 0)
        for ours, theirs in zip((starts[row], ends[row], scores[row]), wanted, strict=True):
            assert ours[kept].tolist() == theirs[real].tolist()


@pytest.fixture(scope="module")
def encoder() -> Iterator[TextEncoder]:
    yield TextEncoder(make_tokenizer("wordpiece").backend_tokenizer, max_length=64, names=["input_ids"], padding={})


def features(encoder: TextEncoder, rows: list[dict[str, Any]], **given: Any) -> Features:
    columns = [[row["question"] for row in rows], [row["context"] for row in rows]]
    return QuestionAnswering().with_options(given).preprocess(columns, encoder)


def test_notes_are_small_and_hold_the_text_once(encoder: TextEncoder) -> None:
    context = "the film was superb " * 40
    found = features(encoder, [{"question": "is it", "context": context}] * 2)
    assert len(found.origins.metadata) > 4
    first, *others = found.origins.metadata[: len(found.origins.metadata) // 2]
    assert first.endswith(context.encode())
    assert max(map(len, others)) < 10 * 64


def test_a_text_of_nothing_has_no_answer(ask: Asked) -> None:
    nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert ask([{"question": "is it", "context": text} for text in ("", " ", "\u200b")], top_k=3) == [nothing] * 3
    assert ask([{"question": "", "context": "superb"}])[0]["answer"] == "superb"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_seq_len": 65}, "max_seq_len is 65, and the model takes 64 tokens at most"),
        ({"max_seq_len": 20, "doc_stride": 30}, r"doc_stride \(30\) is larger than max_seq_len \(20\)"),
        ({"doc_stride": 64}, "row 0: a window of 64 tokens has no room for the question, 64 tokens of overlap"),
        ({"top_k": 0}, "option top_k must be 1 or more, not 0"),
        ({"top_k": 1001}, "option top_k must be 1000 or less, not 1001"),
        ({"top_k": True}, "option top_k must be a whole number, not True"),
        ({"align_to_words": 1}, "option align_to_words must be true or false, not 1"),
        ({"truncation": True}, "question-answering has no option truncation; it has top_k, doc_stride"),
    ],
)
def test_what_a_request_must_not_ask(encoder: TextEncoder, given: dict[str, Any], message: str) -> None:
    long = {"question": "is it", "context": "the film " * 100}
    with pytest.raises(ValueError, match=message):
        features(encoder, [long, long], **given)


def test_a_question_that_fills_the_window(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="row 1: a window of 64 tokens has no room for the question"):
        features(encoder, [{"question": text, "context": "the film"} for text in ("is it", "the film " * 100)])
    assert len(features(encoder, [{"question": "is it", "context": "the film"}]).encodings) == 1, "the encoder is as before"


@pytest.mark.parametrize("text_first", [False, True])
def test_targets_are_the_answers_tokens(encoder: TextEncoder, text_first: bool) -> None:
    rows = answering.rows(60, seed=5)
    served = QuestionAnswering(text_first=text_first)
    columns = [[row["question"] for row in rows], [row["context"] for row in rows]]
    made = served.with_options({"max_seq_len": 32}).preprocess(columns, encoder)
    references = [TASK.read_row((row["question"], row["context"]), row["answers"])[1] for row in rows]
    targets = TASK(served=served).targets(made, [*references[:-1], []])
    held = [False] * len(rows)
    for window, owner, start, end in zip(
        made.encodings, made.origins.sample_mapping.tolist(), targets["start_positions"], targets["end_positions"], strict=True
    ):
        if (start, end) != (0, 0):
            text = rows[owner]["context"][window.offsets[start][0] : window.offsets[end][1]]
            assert text == rows[owner]["answers"]["text"][0]
            held[owner] = True
    assert held == [True] * 59 + [False]
    assert 0 in targets["start_positions"][:-1], "some windows do not hold it"


def test_the_pipelines_answers_to_one_row_are_one_answer() -> None:
    answers = {1: [{"answer": "a"}, {"answer": "b"}], 2: [{"answer": "a"}, {"answer": "b"}]}
    for count, wanted in ((1, [answers[1]]), (2, answers[2])):
        pipeline: Any = lambda **asked: answers[len(asked["question"])]  # noqa: E731
        assert task().ask_pipeline(pipeline, [("q", "c")] * count, max_length=64) == wanted


# -- rows ----------------------------------------------------------------------------------------------------------------------

ANSWERS = [{"text": "Berlin", "answer_start": 10}, {"text": "in Berlin", "answer_start": 7}]


@pytest.mark.parametrize(
    ("label", "answers"),
    [
        (ANSWERS, ANSWERS),
        ([{**ANSWERS[0], "id": 3}], ANSWERS[:1]),
        ({"text": ["Berlin", "in Berlin"], "answer_start": [10, 7]}, ANSWERS),
        (json.dumps(ANSWERS), ANSWERS),
        ('{"text": [], "answer_start": []}', []),
        ([], []),
    ],
)
def test_forms_of_answers(label: Any, answers: Any) -> None:
    texts = ("Where?", "I live in Berlin.")
    assert TASK.read_row(texts, label) == (texts, answers)
    assert task().is_reference(task().reference(answers))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("Berlin", "the answers are not"),
        (None, "the answers are not"),
        ([{"text": "Berlin"}], "the answers are not"),
        ({"text": ["Berlin"], "answer_start": []}, "the answers are not"),
        ([{"text": "Berlin", "answer_start": "10"}], "the answers are not"),
        ([{"text": "", "answer_start": 1}], "the answers are not"),
        (
            [{"text": "Berlin", "answer_start": 9}],
            "the answer 'Berlin' is not at character 9 of the context, where ' Berli' stands",
        ),
    ],
)
def test_what_are_no_answers(label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.read_row(("Where?", "I live in Berlin."), label)


def test_files_and_what_travels_with_a_bundle(tmp_path: Path) -> None:
    lines = [{"question": "Where?", "context": "I live in Berlin.", "answers": answers} for answers in (ANSWERS, [])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = load_rows(str(tmp_path / "rows.jsonl"), Columns(), TASK, split="train", cache=tmp_path)
    assert found.labels == (ANSWERS, [])
    task = TASK.from_labels(found.labels, names=(), pair=True)
    assert task.evaluated.handle_impossible_answer, "one row has no answer"
    assert not task.served.handle_impossible_answer, "the pipeline allows no empty answer where nobody asks for it"
    assert TASK.from_config(task.head(), pair=True) == task == load_task(task.name, task.to_settings())
    labelled = encode_labels(found, task)
    write_evaluation(labelled, tmp_path)
    assert read_evaluation(tmp_path, task) == labelled
    with pytest.raises(ValueError, match="no row has an answer"):
        TASK.from_labels([[], []], names=(), pair=True)


def test_questions_about_one_text_are_held_out_together() -> None:
    contexts = tuple(str(number // 5) for number in range(50))
    questions = tuple(map(str, range(50)))
    rows = Rows(location="rows", texts=(questions, contexts), labels=([],) * 50)
    kept, held = hold_out(rows, 0.2, 0, key=TASK.group_key)
    assert len(held) == 10 and not set(held.texts[1]) & set(kept.texts[1])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 12])
def test_windows_too_small_are_refused_or_serve(encoder: TextEncoder, length: int) -> None:
    """However small: the library does not end the process, and what fits holds every token of the text."""
    try:
        found = features(encoder, [{"question": "is", "context": "the film was superb"}], max_seq_len=length, doc_stride=0)
    except ValueError as error:
        assert length < 5 and "has no room for the question" in str(error)
    else:
        assert sum(window.sequence_ids.count(1) for window in found.encodings) == 4


def test_a_row_that_cannot_be_trained_on_is_said(encoder: TextEncoder) -> None:
    with pytest.raises(DataError, match="the model cannot take the rows: row 0: a window of 64 tokens"):
        tokenize_rows(LabelledRows(texts=(("the film " * 100,), ("superb",)), labels=([],)), task(), encoder)


# -- judging -------------------------------------------------------------------------------------------------------------------


def test_the_metric_is_squads() -> None:
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    texts = ["The Eiffel Tower", "eiffel tower!", "a tower", "the", "", "tower tower", "Paris, France", "in  Paris", "파리"]
    for prediction in texts:
        for right in (texts[:2], texts[3:4], texts[5:], []):
            figures = compute("spans", [prediction], [[{"text": text, "answer_start": 0} for text in right]])
            golds = [text for text in right if text != "the"] or [""]
            assert figures["exact_match"] == max(compute_exact(gold, prediction) for gold in golds)
            assert figures["f1"] == pytest.approx(max(compute_f1(gold, prediction) for gold in golds))


def test_agreement_is_of_places_and_ties_of_scores(encoder: TextEncoder) -> None:
    judge = task()
    made = features(encoder, [{"question": "is it", "context": "the film was superb"}] * 3)
    logits = np.zeros((2, 3, len(made.encodings[0])), dtype=np.float32)
    logits[:, :, -2] = 9  # superb
    other = logits.copy()
    other[:, 1, -3] = 9.00001  # was, hardly better
    other[:, 2, -3] = 20
    answered = [judge.answers(dict(zip(judge.heads, each, strict=True)), made.origins) for each in (logits, other)]
    assert judge.agreement(answered[1], answered[0]).tolist() == [1, 0, 0]
    assert judge.ties(answered[1]).tolist() == [False, True, False]
    assert judge.predictions(answered[0]) == ["superb"] * 3
    assert set(answered[0]) == {tensor.name for tensor in judge.served.outputs()} | {MARGIN}


def test_it_is_learnt(trained: Path) -> None:
    figures = read_manifest(trained, CheckpointManifest).figures
    assert figures.rows == {"train": 240, "validation": 60, "test": 100}
    assert figures.splits["test"]["f1"] > 0.9, "the praise is easily found, in whichever window it stands"


def test_its_name_and_no_other_of_its_modules() -> None:
    assert "question-answering" in task_names()
    assert not any("spans" in name for name in task_names())


# -- calls ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "given", "rows"),
    [
        ((), {"question": "a", "context": "b"}, [("a", "b")]),
        ((), {"question": ["a", "c"], "context": "b"}, [("a", "b"), ("c", "b")]),
        ((), {"question": ["a", "c"], "context": ["b", "d"]}, [("a", "b"), ("c", "d")]),
        (("a", "b"), {}, [("a", "b")]),
        (({"question": "a", "context": "b"},), {}, [("a", "b")]),
        (({"question": "a", "context": "b"}, {"question": "c", "context": "d"}), {}, [("a", "b"), ("c", "d")]),
        (([{"question": "a", "context": "b"}],), {}, [("a", "b")]),
        (({"question": ["a"], "context": ["b"]},), {}, [("a", "b")]),
        (([],), {}, []),
    ],
)
def test_forms_of_calls(arguments: Any, given: Any, rows: Any) -> None:
    inputs, options = QuestionAnswering().parse_call(arguments, {**given, "top_k": 2})
    assert (QuestionAnswering().parse_inputs(inputs), options) == (rows, {"top_k": 2})


@pytest.mark.parametrize(
    ("arguments", "given", "error"),
    [
        ((), {}, ValueError),
        ((), {"question": "a"}, ValueError),
        ((), {"question": "a", "context": ["b"]}, ValueError),
        ((), {"question": ["a", "c"], "context": ["b"]}, ValueError),
        ((), {"question": "", "context": "b"}, ValueError),
        (("a",), {}, ValueError),
        (({"question": "a"},), {}, KeyError),
        (({"question": "a", "context": None},), {}, ValueError),
        (({"question": ["a"], "context": "b"},), {}, ValueError),
        (([{"question": "a", "context": "b", "id": 1}],), {}, TypeError),
    ],
)
def test_calls_that_are_refused(arguments: Any, given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        QuestionAnswering().check_rows(QuestionAnswering().parse_inputs(QuestionAnswering().parse_call(arguments, given)[0]))
