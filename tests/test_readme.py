"""The README files: their commands, options, recipes, links and code are real, and the first one stays short."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from export.cli import COMMANDS, tritonize
from export.recipe import builtin_recipes
from export.tasks import is_exported, task_class, task_names
from serving.runtime.tasks import served_class, served_names

PROJECT = Path(__file__).parents[1]
TOP, EXPORT, SERVING = (PROJECT / folder / "README.md" for folder in (".", "export", "serving"))
FILES = (TOP, EXPORT, SERVING, *(PROJECT / folder / "README.md" for folder in ("benchmarks", "model_repository")))
TOP_BYTES = 14_000
PICTURE_COLUMNS = 80
MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)) - {"all"}
VARIABLES = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", MAKEFILE.partition("GIVEN      :=")[2].partition("$(foreach")[0]))
FOREIGN_OPTIONS = {
    *("--build-arg", "--shm-size", "--profile", "--nproc-per-node", "--backend"),
    *("--model-control-mode", "--load-model", "--grpc-restricted-protocol", "--http-restricted-api"),
}
"""Options of docker, torchrun, tritonserver and its OpenAI front end."""
FIGURES = re.compile(r"\b(rows/s|accuracy|minutes|test rows)\b")
"""A table with one of these in its first line holds measurements."""

DTYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "INT64": "TYPE_INT64", "UINT32": "TYPE_UINT32"}
REQUIRED = {
    "text-classification": {"labels": ("bad", "good"), "function_to_apply": "softmax"},
    "token-classification": {"labels": ("O", "B-PER")},
    "zero-shot-classification": {"entailment": 0, "contradiction": 1},
    "text-generation": {"vocab_size": 100},
    "summarization": {"vocab_size": 100, "decoder_start_token_id": 0},
    "translation": {"vocab_size": 100, "decoder_start_token_id": 0},
}
"""Settings without which a task cannot be made."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a README file."""

    file: Path
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines a reader types, without prompt and comment."""
        return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]


def blocks(language: str) -> list[Block]:
    found = []
    for file in FILES:
        fences = re.findall(r"^```(\w+)\n(.*?)^```$", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        found += [Block(file=file, language=name, text=text) for name, text in fences if name == language]
    return found


LINES = sorted({line for block in blocks("console") for line in block.commands})
MAKE_LINES = [line for line in LINES if line.startswith("make ")]
TRITONIZE_LINES = [line for line in LINES if re.search(r"\.venv/bin/tritonize |-m export\.cli ", line)]
DOCKER_LINES = [line for line in LINES if line.startswith("docker ")]
CURL_LINES = [line for line in LINES if line.startswith("curl ")]
PIP_LINES = [line for line in LINES if line.startswith("pip ")]


def prose(file: Path) -> str:
    """A README file without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def command(name: str) -> click.Command:
    found = tritonize.get_command(click.Context(tritonize), name)
    assert found is not None, name
    return found


def options() -> set[str]:
    parameters = [parameter for name in COMMANDS for parameter in command(name).params]
    return {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}


def anchors(file: Path) -> list[str]:
    """What GitHub calls the headings of a file in links."""
    headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def tables(file: Path, heading: str) -> list[list[str]]:
    """The rows of all tables in a section, without those of their heads."""
    section = file.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\|.*\n\| ?---.*\n((?:^\|.*\n)+)", section, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" |")] for table in found for line in table.splitlines()]


def quoted(cell: str) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`]+)`", cell))


def test_every_line_is_of_a_known_kind() -> None:
    assert set(LINES) == {*MAKE_LINES, *TRITONIZE_LINES, *DOCKER_LINES, *CURL_LINES, *PIP_LINES}
    assert {"make export serve", "make test"} <= set(MAKE_LINES)
    assert DOCKER_LINES and CURL_LINES


@pytest.mark.parametrize("line", MAKE_LINES)
def test_make_lines(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert {word for word in words if "=" not in word} <= TARGETS
    assert {word.partition("=")[0] for word in words if "=" in word} <= VARIABLES


@pytest.mark.parametrize("line", TRITONIZE_LINES)
def test_tritonize_lines(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Click accepts the options and their values, those of a recipe included. The command itself does not run."""
    words = shlex.split(re.split(r"\.venv/bin/tritonize |-m export\.cli ", line)[1], comments=True)
    monkeypatch.chdir(tmp_path)
    for word in words:
        if re.fullmatch(r"\w[\w.-]*", word):  # it may be a file that must exist
            Path(word).touch()
    (recipe,) = blocks("toml")
    Path("tickets.toml").write_text(recipe.text, encoding="utf-8")
    command(words[0]).make_context(words[0], words[1:], parent=click.Context(tritonize))


@pytest.mark.parametrize("line", DOCKER_LINES)
def test_docker_lines(line: str) -> None:
    words = shlex.split(line, comments=True)
    file = PROJECT / words[words.index("-f") + 1]
    assert file.is_file()
    if words[1] == "compose":
        services = set(words[words.index("up") + 1 :])
        assert all(f"\n  {service}:" in file.read_text(encoding="utf-8") for service in services)


@pytest.mark.parametrize("line", CURL_LINES)
def test_curl_lines(line: str) -> None:
    words = shlex.split(line, comments=True)
    (tensor,) = json.loads(words[words.index("-d") + 1])["inputs"]
    assert (tensor["name"], tensor["datatype"]) == ("TEXT", "BYTES")


@pytest.mark.parametrize("line", PIP_LINES)
def test_pip_lines(line: str) -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"\[(\w+)\]", line)) <= extras.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_options_in_the_text(file: Path) -> None:
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\b", prose(file))) - FOREIGN_OPTIONS <= options()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_make_calls_in_the_text(file: Path) -> None:
    for call in re.findall(r"`make ([^`]+)`", prose(file)):
        test_make_lines(f"make {call}")


def test_every_target_and_command_is_named() -> None:
    text = TOP.read_text(encoding="utf-8")
    missing = [name for name in (*COMMANDS, *TARGETS) if not re.search(rf"\b{name}\b", text)]
    assert not missing


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.file.parent.name)
def test_recipes(block: Block, tmp_path: Path) -> None:
    """Each command that a recipe has a section for accepts the recipe."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(block.text, encoding="utf-8")
    sections = [key for key, value in tomllib.loads(block.text).items() if isinstance(value, dict)]
    assert sections
    for section in sections:
        command(section).make_context(section, ["--recipe", str(recipe)], parent=click.Context(tritonize))


@pytest.mark.parametrize(
    "block", [block for block in blocks("python") if not block.text.startswith("# ")], ids=lambda block: block.file.parent.name
)
def test_imports_of_python_blocks(block: Block) -> None:
    """Blocks that begin with a file's name are run by tests/export/test_readme_example.py."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(file)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        assert linked.exists(), target
        assert not anchor or anchors(linked).count(anchor) == 1, target


def test_the_first_file_is_short() -> None:
    assert len(TOP.read_bytes()) <= TOP_BYTES


def test_the_picture_fits_a_terminal() -> None:
    picture = blocks("text")[0]
    assert picture.file == TOP and "preprocess" in picture.text
    assert picture.text.isascii() and max(map(len, picture.text.splitlines())) <= PICTURE_COLUMNS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_measured_tables_have_their_command(file: Path) -> None:
    """In its section, a table with measurements follows the command that made it."""
    for section in re.split(r"^#+ ", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
        searched = 0
        for table in re.finditer(r"^\|.*\n(?:^\|.*\n)+", section, re.MULTILINE):
            head, _, *rows = table.group().splitlines()
            if FIGURES.search(head) and any(re.search(r"\| [^|]*\d", row) for row in rows):
                assert "\n$ .venv/bin/tritonize" in section[searched : table.start()], head
                searched = table.end()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_nothing_is_left_to_fill_in(file: Path) -> None:
    assert "@@" not in file.read_text(encoding="utf-8")


def test_table_of_tasks() -> None:
    rows = tables(TOP, "Tasks")
    assert {row[0].strip("`") for row in rows} == {name for name in task_names() if is_exported(task_class(name))}
    text = TOP.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in task_names())


def test_table_of_training_data() -> None:
    rows = tables(EXPORT, "Tasks and their training data")
    columns = {row[0].strip("`"): quoted(" ".join(row)) for row in rows if row[0]}
    assert columns.keys() == set(task_names())
    for name, shown in columns.items():
        assert {column for column in task_class(name).columns.values() if column is not None} <= shown
    recipes = {recipe for row in rows for recipe in row[-1].split(", ") if recipe}
    assert recipes == set(builtin_recipes())


def test_table_of_settings() -> None:
    shown = {(task, setting) for row in tables(EXPORT, "Task settings") for task in quoted(row[0]) for setting in quoted(row[1])}
    classes = {name: served_class(name) for name in served_names()}
    parameters = {(name, option) for name, task in classes.items() for option in task.options if option not in task.request_only}
    assert shown == {(name, setting) for name in task_names() for setting in task_class(name).settings} - parameters


def test_table_of_request_parameters() -> None:
    rows = tables(SERVING, "Request parameters")
    truncation, *others = rows
    assert quoted(truncation[1]) == {"truncation"}
    shown = {(task, option) for row in others for task in quoted(row[0]) for option in quoted(row[1])}
    shown |= {(name, "truncation") for name in set(served_names()) - quoted(truncation[0])}
    assert shown == {(name, option) for name in served_names() for option in served_class(name).options}


def test_table_of_tensors() -> None:
    rows = {row[0].strip("`"): row[1:] for row in tables(SERVING, "Tensors")}
    assert rows.keys() == set(served_names())
    for name, cells in rows.items():
        shown = [[(tensor, DTYPES[dtype]) for tensor, dtype in re.findall(r"`(\w+)` ([A-Z0-9]+) \[", cell)] for cell in cells]
        pair = {"pair": True} if "TEXT_PAIR" in cells[0] else {}
        task = served_class(name)(**REQUIRED.get(name, {}), **pair)
        assert shown == [[(tensor.name, tensor.dtype) for tensor in tensors] for tensors in (task.inputs(), task.outputs())]
