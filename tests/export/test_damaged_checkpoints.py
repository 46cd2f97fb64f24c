"""A damaged, altered or planted file of a checkpoint or a recipe is one line that names it, and nothing is made of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.cli import main
from serving.artifact import MANIFEST, write_manifest
from tests.helpers.manifests import checkpoint_manifest

Damage = Callable[[Path, Path], None]
READ = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def flip(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path, _: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path, _: Path) -> None:
    path.unlink()


def exchange(path: Path, other: Path) -> None:
    """The file of another checkpoint: it can be read, and is the wrong one."""
    shutil.copy(other / path.name, path)


def garble(path: Path, _: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def nest(path: Path, _: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def misshape(path: Path, _: Path) -> None:
    path.write_text("[]")


@pytest.fixture
def own(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with the manifest of a fine-tuning."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "own"))
    (folder / "README.md").write_text("A model.")
    write_manifest(folder, checkpoint_manifest())
    return folder


@pytest.fixture(scope="module")
def other(make_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(make_checkpoint("roberta"), tmp_path_factory.mktemp("other") / "checkpoint"))
    write_manifest(folder, checkpoint_manifest(name="other"))
    return folder


def said(folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> str:
    artifacts = folder.parent / "artifacts"
    given = ["--name", "tiny", "--artifacts", str(artifacts), "--checkpoint", str(folder), "--test", str(rows)]
    assert main(["export", *given, "--precision", "fp32"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].startswith("error: ")
    assert not (artifacts / "tiny" / "bundle").exists()
    return lines[-1]


@pytest.mark.parametrize("damage", [flip, truncate, empty, delete, exchange], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*READ, MANIFEST])
def test_an_altered_file_of_our_own_checkpoint_is_refused_by_name(
    name: str, damage: Damage, own: Path, other: Path, review_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(own / name, other)
    if (name, damage) == (MANIFEST, delete):
        return  # it is somebody else's checkpoint then
    message = said(own, review_file, capsys)
    if (name, damage) == (MANIFEST, exchange):
        assert str(own) in message, "the manifest of another checkpoint does not have these checksums"
    elif (name, damage) in (("config.json", delete), ("model.safetensors", delete)):
        assert f"{own} " in message
    else:
        assert str(own / name) in message


@pytest.mark.parametrize("name", ["added_tokens.json", "model.safetensors.index.json", "1_Pooling/config.json", "chat.jinja"])
def test_a_planted_file_that_would_be_read_is_refused_by_name(
    name: str, own: Path, review_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / name).parent.mkdir(exist_ok=True)
    (own / name).write_text("{}")
    remedy = "remove it, or write it again with: tritonize finetune --name tiny --force"
    assert f"{own / name} is not in the manifest ({remedy})" in said(own, review_file, capsys)


def test_what_nobody_reads_may_change(own: Path, review_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "README.md").write_text("A better description.")
    (own / "notes.md").write_text("mine")
    (own / "tokenizer.json").write_bytes(b"")
    assert "README" not in (message := said(own, review_file, capsys)) and "notes" not in message


@pytest.mark.parametrize("damage", [truncate, empty, garble, nest, misshape], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", READ)
def test_a_damaged_file_of_somebody_elses_checkpoint_is_one_line(
    name: str, damage: Damage, tiny_checkpoint: Path, tmp_path: Path, review_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "theirs"))
    damage(folder / name, folder)
    if damage is misshape and name in ("tokenizer.json", "tokenizer_config.json"):
        assert f"cannot load the tokenizer of {folder}" in said(folder, review_file, capsys)
    else:
        assert str(folder / name) in said(folder, review_file, capsys)


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("config.json", ("architectures",), 3),
        ("config.json", ("architectures", 0), 3.5),
        ("config.json", ("id2label",), [1]),
        ("config.json", ("hidden_size",), "x"),
        ("config.json", ("dtype",), "float@2"),
        ("config.json", ("vocab_size",), None),
        ("tokenizer_config.json", ("model_max_length",), 3.5),
        ("tokenizer_config.json", ("model_max_length",), -1),
        ("tokenizer_config.json", ("tokenizer_class",), "NoSuchTokenizer"),
        ("tokenizer.json", ("model", "vocab"), [[1]]),
        ("tokenizer.json", ("post_processor",), {"type": "x"}),
    ],
)
def test_a_value_of_another_kind_is_one_line(
    name: str,
    keys: tuple[str | int, ...],
    value: object,
    tiny_checkpoint: Path,
    tmp_path: Path,
    review_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "theirs"))
    content = json.loads((folder / name).read_text(encoding="utf-8"))
    inner, (*outer, last) = content, keys
    for key in outer:
        inner = inner[key]
    inner[last] = value
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    assert said(folder, review_file, capsys)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[export",
        b"name = ",
        b'name = "a" "b"',
        b"name = [1]",
        b"name = {a = 1}",
        b"name = 1979-05-27",
        b"[export]\nverify-rows = inf",
        b"[export]\nverify-rows = [1, 'a']",
        b"[export]\nseed = " + b"9" * 5000,
        b"[export]\nsetting = " + b"[" * 9000,
        b"[export]\nno-such-option = 1",
        b"[no-such-command]\nname = 1",
    ],
)
def test_a_damaged_recipe_is_one_line_that_names_it(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(content)
    assert main(["export", "--recipe", str(recipe)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"Error: recipe {recipe}") and not any("Traceback" in line for line in lines)
