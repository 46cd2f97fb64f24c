"""``tritonize predict`` of a model that generates text: lines, JSON, chats, and text while it is generated."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from transformers import GenerationConfig

from export.cli import main
from serving import predict_text
from serving.errors import DataError
from serving.runtime.tasks.summarization import Summarization
from serving.runtime.tasks.text_generation import TextGeneration
from tests.serving.generation.conftest import Generating
from tests.serving.generation.test_client import CHAT, PREFILL

GREEDY = ("--option", "do_sample=false", "--option", "max_new_tokens=12")


def predict(generating: Generating, *arguments: str, name: str = "chat") -> int:
    return main(["predict", name, "--url", generating.url("grpc"), *GREEDY, *arguments])


def new_text(generating: Generating, inputs: Any) -> str:
    (answer,) = generating.pipelines["chat"](inputs, do_sample=False, max_new_tokens=12, return_full_text=False)
    return str(answer["generated_text"])


def test_texts_and_json(generating: Generating, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(generating, "Once upon", "Tom") == 0
    output = capsys.readouterr()
    assert output.out == f"{new_text(generating, 'Once upon')}\n{new_text(generating, 'Tom')}\n"
    assert output.err == "chat has a chat template: give --chat to send the text as a message\n"
    assert predict(generating, "Once upon", name="stories") == 0
    assert not capsys.readouterr().err
    assert predict(generating, "--option", "return_full_text=true", "Once upon") == 0
    assert capsys.readouterr().out == f"Once upon{new_text(generating, 'Once upon')}\n"
    assert predict(generating, "--json", "Once upon") == 0
    assert json.loads(capsys.readouterr().out) == [{"generated_text": f"Once upon{new_text(generating, 'Once upon')}"}]


def test_chats(generating: Generating, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(generating, "--chat", CHAT[0]["content"], json.dumps(PREFILL)) == 0
    output = capsys.readouterr()
    assert output.out == f"{new_text(generating, CHAT)}\n{new_text(generating, PREFILL)}\n" and not output.err
    assert predict(generating, "--chat", "--stream", CHAT[0]["content"]) == 0
    assert capsys.readouterr().out == f"{new_text(generating, CHAT)}\n"


def test_variables_of_the_template_and_a_generation_config(generating: Generating, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"chat_template_kwargs": {"enable_thinking": False}, "generation_config": {"repetition_penalty": 1.6}}
    options = [word for name, value in given.items() for word in ("--option", f"{name}={json.dumps(value)}")]
    asked = {"tokenizer_encode_kwargs": {"enable_thinking": False}, "generation_config": GenerationConfig(repetition_penalty=1.6)}
    (expected,) = generating.pipelines["chat"](CHAT, return_full_text=False, do_sample=False, max_new_tokens=12, **asked)
    assert predict(generating, "--chat", *options, CHAT[0]["content"]) == 0
    assert capsys.readouterr().out == f"{expected['generated_text']}\n" != f"{new_text(generating, CHAT)}\n"


def test_wrong_usage(generating: Generating, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["--stream", "a", "b"], "--stream prints the text of one TEXT"),
        (["--stream", "--json", "a"], "--stream prints the text of one TEXT"),
        (["--option", "top_k=many", "a"], "option top_k must be a whole number"),
        (["--option", "colour=1", "a"], "no option colour"),
    ]:
        assert predict(generating, *arguments) == 2
        assert message in capsys.readouterr().err
    assert predict(generating, "--chat", "a", name="stories") == 1
    assert "no chat template" in capsys.readouterr().err
    assert predict(generating, "--chat", '[{"role"') == 1
    assert "text 1 is no JSON list of messages" in capsys.readouterr().err


def test_text_comes_to_a_terminal_while_it_is_generated_and_ctrl_c_ends_it(generating: Generating) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "export.cli", "predict", "slow", "--url", generating.url("grpc"), "Once upon a time"]
    options = ["--option", "do_sample=false", "--option", "max_new_tokens=300"]
    running = subprocess.Popen([*command, *options], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    shown = b""
    while len(shown) < 20:
        shown += os.read(ours, 1000)
    before = generating.steps.stat().st_size
    running.send_signal(signal.SIGINT)
    _, error = running.communicate(timeout=20)
    os.close(ours)
    assert running.returncode == 130
    assert b"Traceback" not in error, error.decode()
    assert generating.steps.stat().st_size - before < 100
    ended = generating.steps.stat().st_size
    time.sleep(0.3)
    assert generating.steps.stat().st_size == ended


def test_lines_of_chats() -> None:
    assert list(predict_text.chats([("text 1", "Hi"), ("text 2", json.dumps(PREFILL))])) == [
        [{"role": "user", "content": "Hi"}],
        PREFILL,
    ]
    with pytest.raises(DataError, match="line 3"):
        list(predict_text.chats([("line 3", '[{"role": ')]))
    with pytest.raises(DataError, match="line 4 is no JSON list of messages: it is nested too deeply"):
        list(predict_text.chats([("line 4", '[{"role": ' * 50_000)]))


def test_what_comes_in_pieces() -> None:
    task = TextGeneration(vocab_size=9, generation={"max_new_tokens": 5})
    assert predict_text.comes_in_pieces(task, {})
    assert not predict_text.comes_in_pieces(task, {"num_beams": 2})
    assert not predict_text.comes_in_pieces(task, {"return_tensors": True})
    assert not predict_text.comes_in_pieces(Summarization(vocab_size=9, decoder_start_token_id=0), {})


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ([{"generated_text": "a"}, {"generated_text": "b"}], ["a", "b"]),
        ({"summary_text": "a"}, ["a"]),
        ([{"generated_text": CHAT}], None),
        ([{"generated_token_ids": [1]}], None),
        ([{"label": "a", "score": 1.0}], None),
        ([], None),
    ],
)
def test_texts_of_an_answer(answer: object, texts: list[str] | None) -> None:
    assert predict_text.generated_texts(answer) == texts
