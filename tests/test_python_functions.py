"""The Python example of the README runs: from rows to an answer of a real server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.reviews import LABELS, review_rows, write_tsv
from tests.helpers.servers import free_port
from tests.test_readme import TOP, blocks


def replaced(code: str, old: str, new: str) -> str:
    assert code.count(old) == 1, old
    return code.replace(old, new)


@pytest.mark.server
@pytest.mark.long
def test_the_example(base_checkpoint: Path, in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands, but for the checkpoint, which is on the Hub, and the usual ports, which may be taken."""
    (code,) = (block.text for block in blocks("python") if block.file == TOP and "import export, finetune" in block.text)
    write_tsv(in_folder / "tickets.csv", [], "body,team")
    with (in_folder / "tickets.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{text},{label}\n" for text, label in review_rows(400, seed=21))
    ports = ", ".join(f"{kind}_port={free_port()}" for kind in ("http", "grpc", "metrics"))
    code = replaced(code, "distilbert/distilbert-base-uncased", str(base_checkpoint))
    code = replaced(code, "serve()", f"serve({ports})")
    exec(compile(code, str(TOP), "exec"), {})  # noqa: S102
    captured = capsys.readouterr()
    (answer,) = ast.literal_eval(captured.out)
    assert answer["label"] in LABELS and 0.5 <= answer["score"] <= 1
    progress = (
        "fine-tuning",
        "checkpoint: artifacts/tickets/checkpoint",
        "bundle: artifacts/tickets/bundle",
        "tickets is packaged",
    )
    assert all(line in captured.err for line in progress)
