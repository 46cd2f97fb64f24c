"""Sign bundles and packages, after their files were compared with their manifests."""

from __future__ import annotations

from pathlib import Path

from serving.artifact import MANIFEST
from serving.bundle import REMEDY, load_bundle
from serving.errors import ArtifactError
from serving.integrity import check_ensemble, check_files
from serving.layout import package_names
from serving.signatures import sign
from serving.signing_options import SigningOptions


def sign_artifact(artifact: Path, options: SigningOptions) -> list[Path]:
    """Sign a bundle, or the current generation of each package of a repository.

    Args:
        artifact: The bundle or the repository.
        options: The options of ``tritonize sign``.

    Returns:
        The signatures.

    Raises:
        ArtifactError: It is neither of both, or it was altered.
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    if (artifact / MANIFEST).is_file():
        bundle = load_bundle(artifact)
        check_files(bundle.folder, bundle.manifest.files, remedy=REMEDY)
        return [sign(bundle.folder, options.key)]
    names = package_names(artifact)
    if not names:
        raise ArtifactError(f"{artifact} is neither a bundle nor a model repository with packages")
    generations = [check_ensemble(artifact, name).generation for name in names]
    return [sign(generation, options.key) for generation in generations]
