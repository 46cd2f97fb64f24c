"""Signatures of artifacts in the OpenSSF Model Signing format.

A signature is that of a manifest, which has the checksums of all other files and is compared with them before anything is loaded.
So a small signature stands for a model of any size. The program ``model_signing`` verifies it too::

    model_signing verify key --signature bundle/manifest.sig --public_key key.pub bundle/manifest.json
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from serving.artifact import MANIFEST, SIGNATURE
from serving.errors import ArtifactError, SetupError
from serving.isolation import temporary_prefix

MAKE_KEYS = (
    "make a pair with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
)


def sign(folder: Path, manifest: bytes, key: Path) -> Path:
    """Sign an artifact, whose files have been compared with its manifest.

    Args:
        folder: The folder with the manifest.
        manifest: The bytes of the manifest that the files were compared with.
        key: The private key.

    Returns:
        The signature.

    Raises:
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    with _usable("private", key):
        signing = _model_signing().signing.Config().use_elliptic_key_signer(private_key=key)
    fresh = folder.with_name(f".{folder.name}.{SIGNATURE}")  # beside the artifact, whose files are counted
    try:
        with _private_copy(manifest) as copy:
            signing.sign(copy, fresh)
        fresh.replace(folder / SIGNATURE)
    finally:
        fresh.unlink(missing_ok=True)
    return folder / SIGNATURE


def verify(folder: Path, manifest: bytes, key: Path) -> None:
    """Check the signature of an artifact's manifest.

    Args:
        folder: The folder with the signature.
        manifest: The bytes of the manifest, which the files of the artifact are compared with afterwards. The file is not read
            again: somebody may write another one meanwhile.
        key: The public key.

    Raises:
        ArtifactError: There is no signature, or it is not one of this manifest with the private key of that key.
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    with _usable("public", key):
        verifying = _model_signing().verifying.Config().use_elliptic_key_verifier(public_key=key)
    remedy = "if you trust it, sign it with: tritonize sign"
    if not (folder / SIGNATURE).is_file():
        raise ArtifactError(f"{folder} is not signed", hint=remedy)
    try:
        with _private_copy(manifest) as copy:
            verifying.verify(copy, folder / SIGNATURE)
    except Exception as error:  # whatever its parser raises for a file that anybody may have written
        reason = "it is of another key" if str(error).startswith("Key mismatch") else "it is not one of this manifest"
        raise ArtifactError(f"{folder / SIGNATURE} is refused: {reason}", hint=remedy) from error


@contextmanager
def _private_copy(manifest: bytes) -> Iterator[Path]:
    """Yield a file with the bytes of a manifest that only this user can write: model-signing takes files."""
    with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as folder:
        path = Path(folder) / MANIFEST
        path.write_bytes(manifest)
        yield path


@contextmanager
def _usable(kind: str, key: Path) -> Iterator[None]:
    """Say which key cannot be used."""
    try:
        yield
    except (OSError, ValueError, TypeError) as error:  # a TypeError: it has a password
        raise SetupError(f"{key} cannot be used as the {kind} key: {str(error).splitlines()[0]}", hint=MAKE_KEYS) from error


def _model_signing() -> ModuleType:
    try:
        module: ModuleType = importlib.import_module("model_signing")
    except ImportError as error:
        raise SetupError("signatures need model-signing", hint="install it with: pip install 'tritonize[signing]'") from error
    return module
