"""Nothing is packaged or served that was altered, planted or left out, and the message names the file."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from export.cli import main
from serving import server
from serving.artifact import MANIFEST
from serving.errors import ArtifactError
from serving.install import IMPORTS
from serving.integrity import check_files, check_repository
from serving.options import PackageOptions
from serving.probe import ask
from serving.repository import package
from serving.server import TritonServer
from tests.helpers.packages import generation_of, reseal_package, step
from tests.helpers.resealing import reseal
from tests.helpers.servers import serve_options


@pytest.fixture
def copied_bundle(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_first(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


def link(path: Path) -> None:
    """The same content, but somebody else can exchange it at any time."""
    elsewhere = tempfile.mkdtemp(dir=path.parents[3])
    shutil.move(path, elsewhere)
    path.symlink_to(Path(elsewhere) / path.name)


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, empty, delete]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def said(repository: Path) -> str:
    with pytest.raises(ArtifactError) as raised:
        check_repository(repository)
    assert "\n" not in raised.value.message and raised.value.hint
    return f"{raised.value.message} ({raised.value.hint})"


def test_what_was_packaged_passes(pristine: Path) -> None:
    check_repository(pristine)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damaged_file_of_a_generation_is_refused_by_name(repository: Path, damage: Callable[[Path], None]) -> None:
    generation = generation_of(repository, "one")
    found = [path for path in files(repository) if generation in str(path) and "/other" not in str(path)]
    assert len(found) > 20
    for path in found:
        content = path.read_bytes()
        if not content and damage in (flip, truncate, empty):
            continue  # an empty file, as tasks/__init__.py may be, has nothing to lose
        damage(path)
        message = said(repository)
        assert str(path.relative_to(repository)) in message, (path, message)
        assert message.endswith("--force)") or path.name == MANIFEST, message
        path.write_bytes(content)
        check_repository(repository)


def planted(suffix: str, file: str) -> Callable[[Path], str]:
    """Add a file to a model of the current generation; the suffix names it: that of a step, or nothing for the ensemble."""

    def plant(repository: Path) -> str:
        path = repository / f"one.{generation_of(repository, 'one')}{suffix}" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"planted")
        return "is not in the manifest"

    return plant


def planted_in_the_generation(repository: Path) -> str:
    (repository / "one" / generation_of(repository, "one") / "model.py").write_bytes(b"planted")
    return "model.py is not in the manifest"


def planted_version(repository: Path) -> str:
    (repository / "one" / "2").mkdir()
    shutil.copy(step(repository, "one", "model") / "1" / "model.onnx", repository / "one" / "2")
    return "one/2 was not written by tritonize package (remove it)"


def steps_of_the_other(repository: Path) -> str:
    """The configuration that clients call names the steps of another ensemble."""
    config = repository / "one" / "config.pbtxt"
    ours, theirs = (f"{name}.{generation_of(repository, name)}" for name in ("one", "other"))
    config.write_text(config.read_text().replace(ours, theirs))
    return "one/config.pbtxt was altered: it is not that of its generation"


def steps_of_another_generation(repository: Path) -> str:
    """As a mixture of two generations has them."""
    generation = repository / "one" / generation_of(repository, "one") / "config.pbtxt"
    for config in (generation, repository / "one" / "config.pbtxt"):
        config.write_text(config.read_text().replace(f"one.{generation.parent.name}_model", "one.20200101000000_model"))
    return "config.pbtxt was altered: it does not have the checksum in the manifest"


def step_is_a_link(repository: Path) -> str:
    path = step(repository, "one", "postprocess")
    path.rename(repository.parent / "elsewhere")
    path.symlink_to("../elsewhere")
    return "_postprocess is a link"


def model_of_the_other(repository: Path) -> str:
    path = step(repository, "one", "model") / "1"
    shutil.rmtree(path)
    path.symlink_to(step(repository, "other", "model") / "1")
    return "_model/1 is not in the manifest"


def config_is_gone(repository: Path) -> str:
    (repository / "one" / "config.pbtxt").unlink()
    return "one/config.pbtxt is missing"


def config_chooses_nothing(repository: Path) -> str:
    (repository / "one" / "config.pbtxt").write_text("version_policy { all { } }")
    return "one/config.pbtxt chooses no generation"


def generation_of_the_other(repository: Path) -> str:
    ours, theirs = (repository / name / generation_of(repository, name) for name in ("one", "other"))
    shutil.rmtree(ours)
    shutil.copytree(theirs, ours)
    return "manifest.json belongs to the ensemble other, not to one"


def step_is_gone(repository: Path) -> str:
    """It is not taken for a fused package, which has no such step."""
    shutil.rmtree(step(repository, "one", "preprocess"))
    return "_preprocess is missing"


def ensemble_of_the_generation_is_gone(repository: Path) -> str:
    shutil.rmtree(repository / f"one.{generation_of(repository, 'one')}")
    return f"models/one.{generation_of(repository, 'one')} is missing"


def manifest_is_gone(repository: Path) -> str:
    (repository / "one" / generation_of(repository, "one") / MANIFEST).unlink()
    return "manifest.json is missing"


def manifest_names_other_files(repository: Path) -> str:
    """Who can rewrite the checksums still cannot add a link."""
    link(step(repository, "one", "preprocess") / "1" / "settings.json")
    reseal_package(repository, "one")
    return "_preprocess/1/settings.json is a link"


def manifest_lists_more(repository: Path) -> str:
    """Nor a file that is no part of the generation."""
    content = json.loads((repository / "one" / generation_of(repository, "one") / MANIFEST).read_bytes())
    (repository / "more").write_bytes(b"")
    reseal_package(repository, "one", files=content["files"] | {"more": "0"})
    return "lists more, which is no part of the generation"


def model_of_another_precision(repository: Path) -> str:
    theirs, ours = (step(repository, name, "model") / "1" / "model.onnx" for name in ("other", "one"))
    shutil.copy(theirs, ours)
    return "_model/1/model.onnx was altered"


def a_pipe(repository: Path) -> str:
    """It would hold whoever reads it."""
    path = step(repository, "one", "model") / "1" / "model.onnx"
    path.unlink()
    os.mkfifo(path)
    return "_model/1/model.onnx is not a file"


TRICKS = [
    planted("_preprocess", "1/__pycache__/model.cpython-311.pyc"),
    planted("_postprocess", "1/tasks/__pycache__/base.cpython-311.pyc"),
    planted("_postprocess", "1/model.cpython-311-x86_64-linux-gnu.so"),
    planted("_preprocess", "1/numpy.py"),
    planted("_preprocess", "1/manifest.json"),
    planted("_preprocess", "manifest.json"),
    planted("_preprocess", ".hidden"),
    planted("_preprocess", "2/model.py"),
    planted("", "2/empty"),
    planted("_model", "1/model.onnx.data"),
    planted_in_the_generation,
    planted_version,
    steps_of_the_other,
    steps_of_another_generation,
    step_is_a_link,
    model_of_the_other,
    config_is_gone,
    config_chooses_nothing,
    generation_of_the_other,
    step_is_gone,
    ensemble_of_the_generation_is_gone,
    manifest_is_gone,
    manifest_names_other_files,
    manifest_lists_more,
    model_of_another_precision,
    a_pipe,
]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__qualname__.split(".")[0])
def test_every_trick_is_refused_by_name(repository: Path, trick: Callable[[Path], str]) -> None:
    expected = trick(repository)
    assert expected in said(repository)
    with pytest.raises(ArtifactError):
        TritonServer(serve_options(repository), log=print)


def test_the_remedy_works(repository: Path, bundle: Path) -> None:
    planted("_preprocess", "1/__pycache__/model.cpython-311.pyc")(repository)
    steps_of_the_other(repository)
    model_of_the_other(repository)
    options = PackageOptions(bundle=bundle, repository=repository, name="one", precision="fp32", device="cpu")
    assert not package(options).unchanged
    check_repository(repository)
    config_is_gone(repository)
    package(options)
    check_repository(repository)
    planted_version(repository)
    with pytest.raises(ArtifactError, match=r"one/2 was not written by tritonize package"):
        package(options)


def test_models_of_other_tools_are_let_be(repository: Path) -> None:
    for name in ("theirs", "theirs_model"):
        (repository / name / "1" / "__pycache__").mkdir(parents=True)
        (repository / name / "2").symlink_to("1")
    check_repository(repository)


def test_a_generation_that_is_replaced_meanwhile_is_no_damage(
    repository: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    """A server may start while the ensemble is packaged again."""
    from serving import integrity

    options = PackageOptions(bundle=bundle, repository=repository, name="one", precision="fp32", device="cpu", force=True)
    read, packaged = integrity.manifest_bytes, []

    def packaging(folder: Path, model: type) -> bytes:
        if not packaged:
            packaged.append(package(options))
        return read(folder, model)

    monkeypatch.setattr(integrity, "manifest_bytes", packaging)
    check_repository(repository)
    assert packaged


@pytest.mark.parametrize("damage", [*DAMAGES, link], ids=lambda damage: damage.__name__)
def test_every_damaged_file_of_a_bundle_is_refused_by_name(
    copied_bundle: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    options = PackageOptions(bundle=copied_bundle, repository=tmp_path / "models", name="one", precision="fp32", device="cpu")
    for path in files(copied_bundle):
        content = path.read_bytes()
        damage(path)
        with pytest.raises(ArtifactError) as raised:
            package(options)
        message = f"{raised.value.message} {raised.value.hint}"
        if path.name != MANIFEST or damage is not link:
            assert path.relative_to(copied_bundle).as_posix() in message or "no bundle at" in message, (path, message)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
    assert not (tmp_path / "models").exists()


def test_nothing_is_served_beside_what_a_folder_lists(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(ArtifactError, match="sub is not in the manifest"):
        check_files(tmp_path, {}, remedy="do it again")
    (tmp_path / "sub").rmdir()
    (tmp_path / MANIFEST).touch()
    check_files(tmp_path, {}, remedy="do it again")
    with pytest.raises(ArtifactError, match=r"manifest.json is not in the manifest"):
        check_files(tmp_path, {}, remedy="do it again", has_manifest=False)


def plant_bytecode(module: Path, line: str) -> None:
    """Write bytecode of the module with one line more, which Python takes for that of the module itself."""
    source = module.parent / "planted.py"
    source.write_text(f"{module.read_text()}\n{line}\n")
    code = Path(importlib.util.cache_from_source(module))
    py_compile.compile(str(source), cfile=str(code), dfile=str(module), doraise=True)
    source.unlink()
    facts, compiled = module.stat(), code.read_bytes()
    code.write_bytes(compiled[:8] + struct.pack("<II", int(facts.st_mtime), facts.st_size) + compiled[16:])


def test_bytecode_is_that_of_installed_packages_alone(tmp_path: Path) -> None:
    """Those would take half a second to compile at each start of a stub."""
    for folder in ("installed", "models"):
        (tmp_path / folder).mkdir()
        module = tmp_path / folder / f"from_{folder}.py"
        module.write_text("print('source', __name__)")
        plant_bytecode(module, "print('bytecode', __name__)")
    places = [str(path) for path in (IMPORTS.parent, tmp_path / "installed", tmp_path / "models")]
    code = f"import sys; sys.path += {places}; import imports; imports.ignore_bytecode({places[1]!r})"
    done = subprocess.run(
        [sys.executable, "-B", "-c", f"{code}; import from_installed, from_models"], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["source from_installed", "bytecode from_installed", "source from_models"]


@pytest.mark.server
@pytest.mark.long
def test_planted_bytecode_does_not_run_even_where_nobody_checks(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does a server write any."""
    ran = tmp_path / "ran"
    folder = step(repository, "one", "preprocess") / "1"
    for name in ("metadata.py", "model.py"):
        plant_bytecode(folder / name, f"open({str(ran)!r}, 'w')")
    ordinary = f"import importlib, sys; sys.path.insert(0, {str(folder.parent)!r}); importlib.import_module('1.metadata')"
    subprocess.run([sys.executable, "-B", "-c", ordinary], check=True)
    assert ran.exists(), "an ordinary Python runs it"
    ran.unlink()
    monkeypatch.setattr(server, "check_repository", lambda _: None)
    with TritonServer(serve_options(repository), log=lambda _: None) as running:
        running.wait_until_ready()
        assert ask(running.options.base_url, running.probes[0], timeout=10)
    assert not ran.exists()
    assert [path.name for path in repository.rglob("__pycache__")] == ["__pycache__"], "only the planted one"
    with pytest.raises(ArtifactError, match="__pycache__ is not in the manifest"):
        check_repository(repository)


@pytest.mark.server
@pytest.mark.long
def test_a_server_leaves_the_repository_as_it_is(repository: Path) -> None:
    with TritonServer(serve_options(repository), log=lambda _: None) as running:
        running.wait_until_ready()
    check_repository(repository)


@pytest.mark.server
@pytest.mark.parametrize("trick", [model_of_another_precision, planted_version, TRICKS[0]], ids=["altered", "version", "bytecode"])
def test_serve_names_the_file_and_ends(repository: Path, trick: Callable[[Path], str]) -> None:
    expected = trick(repository)
    options = serve_options(repository)
    ports = [f"--{name}-port={getattr(options, f'{name}_port')}" for name in ("http", "grpc", "metrics")]
    command = [sys.executable, "-m", "export.cli", "serve", f"--repository={repository}", "--strict", *ports]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == 1 and not ended.stdout and "Traceback" not in ended.stderr
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert expected in error


@pytest.mark.parametrize("damage", [flip_first, truncate, empty], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["fp32/model.onnx", "tokenizer.json", "manifest.json"])
def test_a_damaged_bundle_with_fitting_checksums_is_one_line(
    copied_bundle: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The libraries that read it raise errors of many types. (A flipped bit in the middle may be a weight: no rule broken.)"""
    damage(copied_bundle / name)
    if name != MANIFEST:
        reseal(copied_bundle)
    given = ["--bundle", copied_bundle, "--repository", tmp_path / "models", "--name", "one", "--precision", "fp32"]
    code = main(["package", *map(str, given)])
    lines = capsys.readouterr().err.splitlines()
    assert code == 1 and lines[-1].startswith("error: ") and str(copied_bundle / name) in lines[-1]
    assert not any("Traceback" in line for line in lines)
