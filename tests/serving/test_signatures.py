"""Signed bundles and repositories: what was signed is taken, and everything else is refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from export import cli
from serving.artifact import SIGNATURE
from serving.control_socket import ReleaseRequest
from serving.errors import ArtifactError, SetupError
from serving.layout import current_folder
from serving.readiness import Readiness
from serving.releases import Releases
from serving.served_view import open_view
from serving.signatures import sign, verify
from tests.helpers.packages import entries_of, write_package
from tests.helpers.surroundings import free_port


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return folder


@pytest.fixture
def artifact(keys: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"files": {"model.onnx": "0" * 64}}))
    sign(folder, keys / "ours.pem")
    return folder


def test_a_signature_is_of_one_manifest_and_one_key(artifact: Path, keys: Path, tmp_path: Path) -> None:
    verify(artifact, keys / "ours.pub")
    assert sorted(path.name for path in artifact.iterdir()) == ["manifest.json", SIGNATURE]
    assert not list(tmp_path.glob(".*")), "nothing is left"
    with pytest.raises(ArtifactError, match="is refused: it is of another key"):
        verify(artifact, keys / "theirs.pub")
    (artifact / "manifest.json").write_text(json.dumps({"files": {"model.onnx": "1" * 64}}))
    with pytest.raises(ArtifactError, match="is refused: it is not one of this manifest"):
        verify(artifact, keys / "ours.pub")
    sign(artifact, keys / "theirs.pem")
    with pytest.raises(ArtifactError, match="is refused: it is of another key"):
        verify(artifact, keys / "ours.pub")
    verify(artifact, keys / "theirs.pub")


@pytest.mark.parametrize("content", ["", "{}", "no JSON", '{"verificationMaterial": 1, "dsseEnvelope": null}', "[]", "\x00"])
def test_what_is_no_signature_is_refused(artifact: Path, keys: Path, content: str) -> None:
    (artifact / SIGNATURE).write_text(content)
    with pytest.raises(ArtifactError, match="is refused: it is not one of this manifest"):
        verify(artifact, keys / "ours.pub")
    (artifact / SIGNATURE).unlink()
    with pytest.raises(ArtifactError, match="artifact is not signed"):
        verify(artifact, keys / "ours.pub")


def test_a_signature_whose_key_is_only_claimed_is_refused(artifact: Path, keys: Path) -> None:
    """Somebody signs with a key of their own, and writes into the signature that it is of ours."""
    hint = json.loads((artifact / SIGNATURE).read_text())["verificationMaterial"]
    sign(artifact, keys / "theirs.pem")
    forged = json.loads((artifact / SIGNATURE).read_text()) | {"verificationMaterial": hint}
    (artifact / SIGNATURE).write_text(json.dumps(forged))
    with pytest.raises(ArtifactError, match="is refused"):
        verify(artifact, keys / "ours.pub")


def test_a_key_of_the_wrong_kind_is_refused(artifact: Path, keys: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"ours.pem cannot be used as the public key"):
        verify(artifact, keys / "ours.pem")
    with pytest.raises(SetupError, match=r"ours.pub cannot be used as the private key"):
        sign(artifact, keys / "ours.pub")
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(SetupError, match=r"no.pem cannot be used as the private key: .*"):
        sign(artifact, tmp_path / "no.pem")


def test_the_program_of_the_format_verifies_it_too(artifact: Path, keys: Path) -> None:
    program = Path(sys.executable).with_name("model_signing")
    key = ["--signature", artifact / SIGNATURE, "--public_key", keys / "ours.pub"]
    done = subprocess.run([program, "verify", "key", *key, artifact / "manifest.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_server_leaves_out_what_is_not_signed(repository: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sign", str(repository), "--key", str(keys / "ours.pem")]) == 0
    signatures = [current_folder(repository, name) / SIGNATURE for name in ("one", "other")]
    assert capsys.readouterr().out.splitlines() == [f"{signature} is written" for signature in signatures]
    with open_view(repository, strict=True, verify_key=keys / "ours.pub") as view:
        assert not view.left_out
        signatures[0].unlink()
        with pytest.raises(ArtifactError, match="is not signed"):
            view.refresh()
    with open_view(repository, verify_key=keys / "ours.pub") as view:
        assert list(view.left_out) == ["one"] and "is not signed" in view.left_out["one"].message
        assert (view.folder / "other").exists() and not (view.folder / "one").exists()
    with pytest.raises(ArtifactError, match="is not signed"), open_view(repository, strict=True, verify_key=keys / "ours.pub"):
        pass
    ports = [f"--{kind}-port={free_port()}" for kind in ("http", "grpc", "metrics")]
    code = cli.main(["serve", *ports, "--repository", str(repository), "--strict", "--verify-key", str(keys / "ours.pub")])
    assert code == 1 and "is not signed" in capsys.readouterr().err.splitlines()[-1]


def test_models_of_other_tools_are_left_out_where_signatures_are_asked_for(
    keys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = tmp_path / "models"
    generation = write_package(models, "one")
    (models / "theirs" / "1").mkdir(parents=True)
    sign(current_folder(models, "one"), keys / "ours.pem")
    with open_view(models, strict=True, verify_key=keys / "ours.pub") as view:
        for _ in range(2):
            assert sorted(entry.name for entry in view.folder.iterdir()) == entries_of("one", generation)
            view.refresh()
    assert f"{models / 'theirs'} is left out: tritonize did not package it" in caplog.text


def test_only_the_packages_that_are_named_are_signed(repository: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sign", str(repository), "other", "other", "--key", str(keys / "ours.pem")]) == 0
    assert list(repository.rglob(SIGNATURE)) == [current_folder(repository, "other") / SIGNATURE]
    assert capsys.readouterr().out.count("is written") == 1
    assert cli.main(["sign", str(repository), "one", "third", "--key", str(keys / "ours.pem")]) == 1
    assert "holds no package third (it holds: one, other)" in capsys.readouterr().err
    assert not (current_folder(repository, "one") / SIGNATURE).exists()


def test_altered_files_are_not_signed(repository: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = next(repository.glob("one.*_model/config.pbtxt"))
    config.write_text(config.read_text() + "\n")
    assert cli.main(["sign", str(repository), "--key", str(keys / "ours.pem")]) == 1
    assert "was altered" in capsys.readouterr().err
    assert not list(repository.rglob(SIGNATURE)), "not even what is as it was"


def test_a_package_is_made_of_a_signed_bundle(bundle: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own)
    command = ["package", "--bundle", str(own), "--repository", str(tmp_path / "models"), "--name", "one", "--precision", "fp32"]
    command += ["--verify-key", str(keys / "ours.pub")]
    assert cli.main(command) == 1 and f"{own} is not signed" in capsys.readouterr().err
    assert cli.main(["sign", str(own), "one", "--key", str(keys / "theirs.pem")]) == 1
    assert "is a bundle, which holds no packages" in capsys.readouterr().err
    assert cli.main(["sign", str(own), "--key", str(keys / "theirs.pem")]) == 0
    assert cli.main(command) == 1 and "it is of another key" in capsys.readouterr().err
    assert not (tmp_path / "models" / "one").exists()
    assert cli.main(["sign", str(own), "--key", str(keys / "ours.pem")]) == 0
    assert cli.main(command) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing", "--key", "KEY"], 1, "nothing is neither a bundle nor a model repository with packages"),
        (["EMPTY", "--key", "KEY"], 1, "is neither a bundle nor a model repository with packages"),
        (["EMPTY"], 2, "Missing option '--key'"),
        (["EMPTY", "../up", "--key", "KEY"], 2, "is not a model name"),
        (["EMPTY", "--key", "nothing.pem"], 2, "nothing.pem"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str], code: int, message: str, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"EMPTY": str(tmp_path), "KEY": str(keys / "ours.pem")}
    assert cli.main(["sign", *(given.get(argument, argument) for argument in arguments)]) == code
    assert message in capsys.readouterr().err


def test_a_generation_that_is_not_signed_is_not_promoted(keys: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = write_package(models, "one")
    sign(current_folder(models, "one"), keys / "ours.pem")
    with open_view(models, verify_key=keys / "ours.pub") as view:
        second = write_package(models, "one", keep=2)
        releases = Releases(view, Readiness(), SimpleNamespace(update=lambda **_: None))
        nothing = {"on_trial": set(), "watch_stubs": lambda: None, "remove_weights": lambda: None}
        releases.server = SimpleNamespace(address=SimpleNamespace(grpc="127.0.0.1:9"), **nothing)
        with pytest.raises(ArtifactError, match=f"one/{second} is not signed"):
            releases.handle(ReleaseRequest(action="promote", name="one", generation=second), print)
        assert view.generation_of("one") == first
