"""Signed bundles and repositories: what was signed is taken, and everything else is refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from export import cli
from serving import artifact as artifact_module
from serving import integrity, release, release_target, signatures, signed_artifacts
from serving.artifact import MANIFEST, SIGNATURE
from serving.control_socket import ReleaseRequest
from serving.errors import ArtifactError, ServerError, SetupError
from serving.integrity import CheckedEnsemble
from serving.layout import current_folder
from serving.oci import image
from serving.readiness import Readiness
from serving.releases import Releases
from serving.served_view import ServedView, open_view
from serving.trouble import Trouble
from tests.helpers.packages import entries_of, reseal_package, step, write_package
from tests.helpers.resealing import reseal
from tests.helpers.surroundings import free_port


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return folder


def sign(folder: Path, key: Path) -> None:
    """Sign the manifest that a folder has now."""
    signatures.sign(folder, (folder / MANIFEST).read_bytes(), key)


def verify(folder: Path, key: Path) -> None:
    """Verify the signature of the manifest that a folder has now."""
    signatures.verify(folder, (folder / MANIFEST).read_bytes(), key)


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


def test_only_signed_packages_come_into_an_image(
    repository: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out" / "models.tar"
    command = ["image", "one", "--repository", str(repository), "--output", str(output), "--repository-only"]
    command += ["--verify-key", str(keys / "ours.pub")]

    def refused(reason: str) -> bool:
        return cli.main(command) == 1 and reason in capsys.readouterr().err and not list(output.parent.glob("*"))

    assert refused("is not signed")
    assert cli.main(["sign", str(repository), "one", "--key", str(keys / "theirs.pem")]) == 0
    assert refused("it is of another key")
    assert cli.main(["sign", str(repository), "one", "--key", str(keys / "ours.pem")]) == 0

    def copy_without_signature(source: Path, target: Path, *, symlinks: bool) -> None:
        shutil.copytree(source, target, symlinks=symlinks)
        (target / SIGNATURE).unlink(missing_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr(image, "shutil", SimpleNamespace(copytree=copy_without_signature, copyfile=shutil.copyfile))
        assert refused("is not signed"), "what is in the image is verified, not only what it is copied from"
    assert cli.main(command) == 0 and output.is_file()


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


def releases_of(view: ServedView) -> Releases:
    """The releases of a server that cannot be reached."""
    made = Releases(view, Readiness(), SimpleNamespace(update=lambda **_: None))
    nothing = {"on_trial": set(), "watch_stubs": lambda: None, "remove_weights": lambda: None}
    made.server = SimpleNamespace(address=SimpleNamespace(grpc="127.0.0.1:9"), **nothing)
    return made


def test_a_generation_that_is_not_signed_is_not_promoted(keys: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    first = write_package(models, "one")
    sign(current_folder(models, "one"), keys / "ours.pem")
    with open_view(models, verify_key=keys / "ours.pub") as view:
        second = write_package(models, "one", keep=2)
        with pytest.raises(ArtifactError, match=f"one/{second} is not signed"):
            releases_of(view).handle(ReleaseRequest(action="promote", name="one", generation=second), print)
        assert view.generation_of("one") == first


# --- a manifest is read once ------------------------------------------------------------------------------------------------------


class Planter:
    """Somebody who plants a model with a manifest that fits, and puts the signed manifest back while the files are hashed."""

    def __init__(self, folder: Path, model: Path, plant: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
        self._manifest, self._model, self._signed = folder / MANIFEST, model, (folder / MANIFEST).read_bytes()
        self.has_hashed = False
        self._plant = plant
        monkeypatch.setattr(integrity, "sha256", self.hash)
        self.plant()

    def plant(self) -> None:
        self._model.write_bytes(b"planted")
        self._plant()
        assert self._manifest.read_bytes() != self._signed

    def hash(self, path: Path) -> str:
        self.has_hashed = True
        self._manifest.write_bytes(self._signed)
        return artifact_module.sha256(path)


def test_a_signed_manifest_that_comes_back_vouches_for_no_planted_model(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    write_package(models, "one")
    folder = current_folder(models, "one")
    sign(folder, keys / "ours.pem")
    with open_view(models, verify_key=keys / "ours.pub") as view:
        planter = Planter(folder, step(models, "one", "model") / "1" / "model", lambda: reseal_package(models, "one"), monkeypatch)
        with pytest.raises(ArtifactError, match="is refused: it is not one of this manifest"):
            view.refresh()
        assert not planter.has_hashed, "the signature comes first"
        with pytest.raises(ArtifactError, match="is refused: it is not one of this manifest"):
            releases_of(view).handle(ReleaseRequest(action="promote", name="one", generation=folder.name), print)
    with (
        pytest.raises(ArtifactError, match="is refused: it is not one of this manifest"),
        open_view(models, verify_key=keys / "ours.pub"),
    ):
        pass


def test_files_are_compared_with_the_manifest_whose_signature_was_verified(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody plants a model, and its manifest just after the signature was verified."""
    models = tmp_path / "models"
    write_package(models, "one")
    sign(current_folder(models, "one"), keys / "ours.pem")
    (step(models, "one", "model") / "1" / "model").write_bytes(b"planted")
    verified = signatures.verify

    def plants(*arguments: Any) -> None:
        verified(*arguments)
        reseal_package(models, "one")

    monkeypatch.setattr(integrity, "verify", plants)
    with pytest.raises(ArtifactError, match="was altered"), open_view(models, verify_key=keys / "ours.pub"):
        pass


def test_a_manifest_that_is_planted_after_the_check_is_not_signed(
    repository: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = signed_artifacts.check_ensemble

    def plants(*arguments: Any) -> CheckedEnsemble:
        found = checked(*arguments)
        (step(repository, "one", "model") / "config.pbtxt").write_text("planted")
        reseal_package(repository, "one")
        return found

    monkeypatch.setattr(signed_artifacts, "check_ensemble", plants)
    assert cli.main(["sign", str(repository), "one", "--key", str(keys / "ours.pem")]) == 1
    assert "manifest.json was altered meanwhile" in capsys.readouterr().err
    assert not list(repository.rglob(SIGNATURE))


def test_a_bundle_is_verified_before_its_files_are_read(
    bundle: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "bundle"
    shutil.copytree(bundle, own)
    sign(own, keys / "ours.pem")
    model = own / "fp32" / "model.onnx"

    def plant() -> None:
        content = json.loads((own / MANIFEST).read_bytes())
        reseal(own, files=content["files"] | {"fp32/model.onnx": artifact_module.sha256(model)})

    planter = Planter(own, model, plant, monkeypatch)
    command = ["package", "--bundle", str(own), "--repository", str(tmp_path / "models"), "--name", "one", "--precision", "fp32"]
    assert cli.main([*command, "--verify-key", str(keys / "ours.pub")]) == 1
    assert "is refused: it is not one of this manifest" in capsys.readouterr().err
    assert not planter.has_hashed and not (tmp_path / "models" / "one").exists()


# --- another server ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["promote", "load", "rollback"])
def test_another_server_loads_nothing_that_is_not_signed(
    command: str, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    first, second = (write_package(models, "one", keep=2) for _ in range(2))
    if command == "rollback":
        first, second = second, first
    loads: list[str] = []

    class Control:
        """A Triton that says that it has one generation, and notes what it is to load."""

        def __init__(self, *_: object) -> None:
            """It is not asked yet."""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing is open."""

        def loaded(self) -> dict[str, str]:
            return {"one": first}

        def load(self, model: str) -> None:
            loads.append(model)
            raise ServerError("it was asked to load")

    monkeypatch.setattr(release_target, "ModelControl", Control)
    monkeypatch.setattr(release, "_undo", lambda *_: Trouble())
    current = current_folder(models, "one")
    arguments = [command, "one", "--url", "127.0.0.1:9", "--repository", str(models), "--verify-key", str(keys / "ours.pub")]
    assert cli.main(arguments) == 1
    assert f"one/{second} is not signed" in capsys.readouterr().err
    sign(models / "one" / second, keys / "theirs.pem")
    assert cli.main(arguments) == 1
    assert "it is of another key" in capsys.readouterr().err
    assert not loads and current_folder(models, "one") == current
    sign(models / "one" / second, keys / "ours.pem")
    assert cli.main(arguments) == 1
    assert "it was asked to load" in capsys.readouterr().err and loads


def test_a_server_that_has_a_key_takes_no_other(keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["promote", "one", "--verify-key", str(keys / "ours.pub")]) == 2
    assert "--verify-key goes with --url" in capsys.readouterr().err
