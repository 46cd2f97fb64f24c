"""``tritonize predict`` of models that generate text: chats, and text on the terminal while it is generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing

import click

from serving.client import TritonPipeline
from serving.errors import DataError
from serving.input_rows import Chat, PipelineRow
from serving.pipeline_call import PipelineCall
from serving.records import parse_json
from serving.reporting import plural
from serving.runtime.tasks.base import ServedTask
from serving.runtime.tasks.text_generation import TENSORS, TextGeneration

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a command that the signal ends."""
NEW_TEXT = {"return_full_text": False}


def require_text_generation(task: ServedTask, name: str, flags: Sequence[str]) -> None:
    """Refuse flags of text generation for models of other tasks.

    Raises:
        UsageError: The model does not generate text piece by piece.
    """
    if flags and not isinstance(task, TextGeneration):
        need = plural(len(flags), "needs", "need")
        raise click.UsageError(f"{' and '.join(flags)} {need} a model of text-generation; {name} serves {task.name}")


def takes_chats(task: ServedTask) -> bool:
    """Return whether the model takes chats: a text without its chat template often gets an empty answer."""
    return isinstance(task, TextGeneration) and task.chat


def chats(lines: Iterable[tuple[str, str]]) -> Iterator[Chat]:
    """Turn lines into chats: a JSON list of messages is a whole chat, any other line the first message of a user.

    Args:
        lines: The lines, each after its place for messages.

    Raises:
        DataError: A line begins like a JSON list of messages and is not one.
    """
    for where, line in lines:
        if not line.lstrip().startswith("[{"):
            yield [{"role": "user", "content": line}]
            continue
        try:
            messages = parse_json(line)
        except ValueError as error:
            hint = """write [{"role": "user", "content": "…"}]"""
            raise DataError(f"{where} is no JSON list of messages: {error}: {line:.80}", hint=hint) from None
        yield messages


def comes_in_pieces(task: ServedTask, options: Mapping[str, object]) -> bool:
    """Return whether the answer to one text can be printed while it is generated.

    Args:
        task: The task of the model.
        options: The options of the call.
    """
    if not isinstance(task, TextGeneration):
        return False
    _, call = PipelineCall.read(task, ([],), options, {})
    chosen = task.with_options(call.parameters).generation_options
    return chosen.num_beams == chosen.num_return_sequences == 1 and call.formatting.get("return_type") != TENSORS


def print_pieces(pipe: TritonPipeline, prompt: str | PipelineRow | Chat, options: Mapping[str, object]) -> None:
    """Print the text that continues a text or a chat, while the server generates it.

    Raises:
        Exit: The user interrupted it. The generation has ended then.
        DataError: The prompt has a form that the model does not take.
        RequestError: The server refused it, or is not there.
    """
    try:
        with closing(pipe.stream_text(prompt, **options)) as pieces:
            for piece in pieces:
                click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo()
        raise click.exceptions.Exit(INTERRUPTED) from None
    click.echo()


def text_options(task: ServedTask, options: Mapping[str, object]) -> dict[str, object]:
    """Return the options with which answers are printed as text: the new text alone, unless the options say what is shown."""
    shown = ("return_full_text", "return_text", "return_tensors", "return_type")
    return dict(options) if not isinstance(task, TextGeneration) or options.keys() & set(shown) else {**NEW_TEXT, **options}


def generated_texts(answer: object) -> list[str] | None:
    """Return the texts of an answer of a model that generates; None: it is another answer, which is shown as JSON."""
    records = answer if isinstance(answer, list) else [answer]
    texts = [value for record in records if isinstance(record, dict) and len(record) == 1 for value in record.values()]
    keys = {key for record in records if isinstance(record, dict) for key in record}
    named = keys and all(key.endswith("_text") for key in keys)
    return texts if named and len(texts) == len(records) and all(isinstance(text, str) for text in texts) else None
