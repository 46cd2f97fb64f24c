"""Language models learn from conversations: the chat template writes their text, and the loss may be of the answers alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from export import cli
from export.tasks._conversation import ChatTemplate, read_messages, tokens_within
from export.tasks.base import IGNORED
from export.tasks.text_generation import TextGenerationTask
from export.training.encoding import _with_targets
from serving.artifact import read_manifest
from serving.manifests import CheckpointManifest
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.tokenization import TextEncoder
from tests.helpers.generating import write_checkpoint
from tests.helpers.reviews import BAD, GOOD

WORDS = sorted({word for phrase in (*GOOD, *BAD) for word in phrase.split()})
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
LAST_ONLY = "{% for message in messages %}{{ message['content'] if loop.last else '…' }}{% endfor %}"
REFUSING = "{{ raise_exception('no system prompt') }}"
TALK = [
    {"role": "user", "content": "good film"},
    {"role": "assistant", "content": "dull film"},
    {"role": "user", "content": "moving"},
    {"role": "assistant", "content": "cold"},
]
SMALL = ("--epochs", "1", "--batch-size", "16", "--learning-rate", "1e-2", "--max-length", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has no chat template and adds a start token."""
    return write_checkpoint("llama", tmp_path_factory.mktemp("chat") / "plain")


def with_template(plain: Path, folder: Path, template: str) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template = template
    AutoModelForCausalLM.from_pretrained(plain).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat(plain: Path) -> Path:
    return with_template(plain, plain.parent / "chat", TEMPLATE)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows(in_folder: Path) -> list[list[dict[str, str]]]:
    """Conversations in train.jsonl and test.jsonl of the working directory; those of the test are returned."""
    choose = random.Random(5)

    def conversation() -> list[dict[str, str]]:
        asked = choose.choices(WORDS, k=2)
        return [{"role": "user", "content": " ".join(asked)}, {"role": "assistant", "content": asked[0]}]

    write_rows(in_folder / "train.jsonl", [conversation() for _ in range(96)])
    held_out = [conversation() for _ in range(12)]
    write_rows(in_folder / "test.jsonl", held_out)
    return held_out


def finetune(checkpoint: Path, *more: str) -> int:
    data = ("--train", "train.jsonl", "--test", "test.jsonl", "--text-column", "messages", "--keep-leaks")
    return cli.main(
        ["finetune", "--name", "tiny", "--task", "text-generation", "--checkpoint", str(checkpoint), *data, *SMALL, *more]
    )


def encoded(
    checkpoint: Path, messages: list[dict[str, str]], max_length: int = 16, **settings: bool
) -> tuple[list[list[int]], list[list[int]], Any]:
    """Ids and labels of each row that a conversation becomes, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    task = TextGenerationTask(served=TextGeneration(), conversations=True, **settings).with_tokenizer(tokenizer)
    encoder = TextEncoder(tokenizer.backend_tokenizer, max_length=max_length, names=(), padding={})
    texts, references = task.prepare_rows((["unused"],), [messages], encoder, training=True)
    features = task.training_features(texts, encoder)
    features, targets = _with_targets(features, task.targets(features, references))
    return [list(encoding.ids) for encoding in features.encodings], targets["labels"], tokenizer


def test_a_conversation_has_the_tokens_of_the_chat_template(chat: Path) -> None:
    ids, labels, tokenizer = encoded(chat, TALK[:2], max_length=48)
    assert ids == [tokenizer.apply_chat_template(TALK[:2])] == labels, "one start token, and the end of each message"
    assert tokenizer("good")["input_ids"][0] == tokenizer.bos_token_id, "the tokenizer is as before"


def test_only_the_answers_are_learnt_with_their_ends(chat: Path) -> None:
    ids, labels, tokenizer = encoded(chat, TALK, assistant_only_loss=True)
    assert sum(map(len, ids)) > 16 == max(map(len, ids)), "a long conversation becomes several rows"
    learnt = [[label for label in row if label != IGNORED] for row in labels]
    answers = [tokenizer(f" {TALK[at]['content']}", add_special_tokens=False)["input_ids"] for at in (1, 3)]
    end = tokenizer.eos_token_id
    assert [token for row in learnt for token in row] == [*answers[0], end, *answers[1], end]


def test_a_row_without_an_answer_is_left_out(chat: Path) -> None:
    long = [{"role": "user", "content": "good film " * 20}, {"role": "assistant", "content": "cold"}]
    ids, labels, _ = encoded(chat, long, assistant_only_loss=True)
    assert len(ids) == len(labels) == 1, "the loss of the others would be NaN"
    assert len(encoded(chat, long)[0]) > 2


def test_tokens_that_begin_before_a_span_belong_to_it(plain: Path) -> None:
    """A metaspace token holds the space that the prompt ends with."""
    encoding = AutoTokenizer.from_pretrained(plain).backend_tokenizer.encode("good film", add_special_tokens=False)
    assert tokens_within(encoding, [(5, 9)]) == [False] * (len(encoding) - 1) + [True]
    assert not any(tokens_within(encoding, []))


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--adapter", "lora")])
def test_a_chat_is_judged_by_its_answers(chat: Path, rows: list[list[dict[str, str]]], more: tuple[str, ...]) -> None:
    assert finetune(chat, "--setting", "assistant_only_loss=true", *more) == 0
    folder = Path("artifacts/tiny/checkpoint")
    manifest = read_manifest(folder, CheckpointManifest)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    surprise = counted = 0.0
    for question, answer in rows:
        before = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False).rstrip()
        start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer.apply_chat_template([question, answer])])
        stop = int((ids[0] == tokenizer.eos_token_id).nonzero()[-1])
        with torch.no_grad():
            likelihood = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        surprise -= float(likelihood[start - 1 : stop].sum())
        counted += stop - start + 1
    assert manifest.figures.splits["test"]["perplexity"] == pytest.approx(math.exp(surprise / counted), rel=1e-4)
    assert manifest.settings["assistant_only_loss"] is True and "template" not in manifest.settings
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.backend_tokenizer.truncation is None, "a prompt may be longer than the rows of the training"
    generation = json.loads((folder / "generation_config.json").read_text())
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    assert ends.items() <= generation.items()


def test_parquet_adds_no_keys() -> None:
    row = [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]
    table = pa.table({"messages": [row]})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    (read,) = parquet.read_table(pa.BufferReader(sink.getvalue()))["messages"].to_pylist()
    assert read[1] == {"role": "assistant", "content": "b", "name": None}
    assert read_messages(read) == row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"role": "user", "content": "good"}], "no message has the role 'assistant'"),
        ([], "no message has the role 'assistant'"),
        ([{"role": "user"}, TALK[1]], 'message 1 must be {"role": "…", "content": "…"} with two texts'),
        ([TALK[0], {"role": "assistant", "content": None}], 'message 2 must be {"role": "…", "content": "…"}'),
        ([TALK[0], {"role": "", "content": "x"}], 'message 2 must be {"role": "…", "content": "…"}'),
        (["good", "bad"], "message 1 must be"),
        ({"role": "user", "content": "good"}, "column 'messages' holds dict, not text"),
        ([TALK[0], {"role": "assistant", "content": "\ud800"}], "half of a surrogate pair"),
    ],
)
def test_bad_messages_are_told(
    chat: Path, rows: object, in_folder: Path, row: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(in_folder / "train.jsonl", [TALK, row])
    assert finetune(chat) == 1
    error = capsys.readouterr().err
    assert message in error and "train.jsonl, line 2" in error


@pytest.mark.parametrize(
    ("template", "more", "message"),
    [
        (None, (), "its tokenizer has no chat template, which rows of messages need"),
        (LAST_ONLY, ("--setting", "assistant_only_loss=true"), "does not render a conversation message by message"),
        (REFUSING, (), "the chat template refuses the messages: no system prompt"),
    ],
)
def test_templates_that_do_not_fit_are_told(
    plain: Path, tmp_path: Path, rows: object, template: str | None, more: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint = plain if template is None else with_template(plain, tmp_path / "other", template)
    assert finetune(checkpoint, *more) == 1
    assert message in capsys.readouterr().err


def test_texts_and_conversations_are_not_mixed(
    chat: Path, rows: object, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(in_folder / "test.jsonl", ["a plain text"])
    assert finetune(chat) == 1
    assert "test.jsonl has labels such as None (no labels)" in capsys.readouterr().err
    write_rows(in_folder / "train.jsonl", [f"plain text {number}" for number in range(20)])
    assert finetune(chat, "--setting", "assistant_only_loss=true") == 2
    assert "assistant_only_loss has no effect: the rows are plain texts, not lists of messages" in capsys.readouterr().err


def test_a_line_break_behind_the_end_token_is_no_part_of_the_answer(make_template: Callable[[str], ChatTemplate]) -> None:
    template = make_template(TEMPLATE)
    text = template.render(TALK)
    assert [text[start:end] for start, end in template.assistant_spans(TALK)] == ["dull film</s>", "cold</s>"]
    endless = make_template("{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
                            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")  # fmt: skip
    text = endless.render(TALK)
    assert [text[start:end] for start, end in endless.assistant_spans(TALK)] == ["dull film\n", "cold\n"], (
        "its line break is the end"
    )


@pytest.fixture
def make_template(plain: Path) -> Callable[[str], ChatTemplate]:
    def make(template: str) -> ChatTemplate:
        tokenizer = AutoTokenizer.from_pretrained(plain)
        tokenizer.chat_template = template
        return ChatTemplate(tokenizer)

    return make
