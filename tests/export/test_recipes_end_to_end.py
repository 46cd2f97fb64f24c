"""Recipes of models that generate, from fine-tuning to answers: only checkpoint and rows are others, and tiny."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.cli import main
from export.generation import decoder_variants, decoding_speed, encoder_decoder_variants
from export.recipe import RECIPES, read_recipe
from serving.artifact import read_manifest
from serving.manifests import BundleManifest, CheckpointManifest
from tests.helpers.generating import write_checkpoint
from tests.helpers.reviews import BAD, FILLING, GOOD
from tests.helpers.servers import running, serve_options, wait_stopped

pytestmark = [pytest.mark.server, pytest.mark.long]
WORDS = sorted({word for phrase in (*GOOD, *BAD, *FILLING) for word in phrase.split()})
CHECKPOINTS = {"text-generation": "gpt2", "summarization": "t5", "translation": "t5"}
"""Architectures of the checkpoints that the recipes name."""
TEXT = "a warm and funny film"
ASKED: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 1, "do_sample": False}
"""Options of the request, with which no two libraries differ."""
Row = dict[str, Any]


def words(choose: random.Random, most: int) -> str:
    return " ".join(choose.choices(WORDS, k=choose.randint(2, most)))


def wikitext(choose: random.Random, number: int) -> Row:
    """As Salesforce/wikitext has them: headings, blank lines and paragraphs."""
    return {"text": ("", f" = {words(choose, 3)} = \n", f" {words(choose, 150)} \n")[number % 3]}


def article(choose: random.Random, number: int) -> Row:
    """As abisee/cnn_dailymail has them."""
    text = words(choose, 60)
    return {"article": text, "highlights": " ".join(text.split()[:4]), "id": f"{number:040x}"}


def translation(choose: random.Random, number: int) -> Row:
    """As Helsinki-NLP/opus_books has them: both texts in one column."""
    text = words(choose, 6)
    return {"id": str(number), "translation": {"en": text, "fr": " ".join(reversed(text.split()))}}


ROWS: dict[str, Callable[[random.Random, int], Row]] = {
    "text-generation": wikitext,
    "summarization": article,
    "translation": translation,
}


def local_recipe(name: str, folder: Path) -> Path:
    """Copy a recipe; the copy names a tiny checkpoint and files with rows in ``folder``."""
    content = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    places = {"checkpoint": write_checkpoint(CHECKPOINTS[name], folder / "base", positions=512)}
    for split, count in (("train", 64), ("validation", 12), ("test", 12)):
        places[split] = folder / f"{split}.jsonl"
        choose = random.Random(split)
        rows = [ROWS[name](choose, number) for number in range(count)]
        places[split].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for option, place in places.items():
        content = re.sub(rf'^{option} = ".*"$', f"{option} = {json.dumps(str(place))}", content, flags=re.MULTILINE)
    assert "hub:" not in content and str(places["checkpoint"]) in content and str(places["train"]) in content
    recipe = folder / "local.toml"
    recipe.write_text(content, encoding="utf-8")
    return recipe


def library_answer(task: str, checkpoint: Path) -> Any:
    import transformers

    pipe = transformers.pipeline(task, model=str(checkpoint), device=-1)
    return pipe(TEXT, **ASKED)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_recipe_leads_to_answers(
    name: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoder_variants, "GREEDY_TOKENS", 4)
    monkeypatch.setattr(encoder_decoder_variants, "ANSWER_TOKENS", 8)
    monkeypatch.setattr(decoding_speed, "PASSES", 1)
    recipe, written = local_recipe(name, in_folder), read_recipe(name)
    model, options = str(written["name"]), written["finetune"]
    assert isinstance(options, dict)
    for command in (["finetune"], ["export"], ["package", "--precision", "fp32"]):
        assert main([*command, "--recipe", str(recipe)]) == 0, command
    folder = in_folder / "artifacts" / model
    trained = read_manifest(folder / "checkpoint", CheckpointManifest)
    assert trained.task == written["task"] and trained.training["learning_rate"] == options["learning-rate"]
    assert trained.data.text_columns == (options.get("text-column", "text"),)
    assert trained.inputs.options["max_length"] == options["max-length"]
    assert trained.chosen_settings == options.get("setting", {})
    bundle = read_manifest(folder / "bundle", BundleManifest)
    assert bundle.precisions["fp32"].verdict == "passed"
    served = serve_options(in_folder / "model_repository")
    with running(served):
        capsys.readouterr()
        where = ["--recipe", str(recipe), "--url", f"127.0.0.1:{served.grpc_port}"]
        asked = [part for option, value in ASKED.items() for part in ("--option", f"{option}={json.dumps(value)}")]
        assert main(["predict", model, *where, *asked, "--json", TEXT]) == 0
        answer = json.loads(capsys.readouterr().out)
    wait_stopped()
    assert answer == library_answer(name, folder / "checkpoint")
