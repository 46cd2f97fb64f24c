"""Sign bundles and packages, after their files were compared with their manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.artifact import MANIFEST
from serving.bundle import REMEDY, load_bundle
from serving.errors import ArtifactError
from serving.integrity import check_ensemble, check_files
from serving.layout import package_names
from serving.signatures import sign
from serving.signing_options import SigningOptions


def sign_artifact(artifact: Path, packages: Sequence[str], options: SigningOptions) -> list[Path]:
    """Sign a bundle, or the current generations of packages of a repository.

    Args:
        artifact: The bundle or the repository.
        packages: Names of the packages to sign; empty: all of them.
        options: The options of ``tritonize sign``.

    Returns:
        The signatures.

    Raises:
        ArtifactError: It is neither of both, it was altered, or there is no such package.
        SetupError: The key cannot be used, or model-signing is not installed.
    """
    if (artifact / MANIFEST).is_file():
        if packages:
            raise ArtifactError(f"{artifact} is a bundle, which holds no packages", hint="give names with a model repository only")
        bundle = load_bundle(artifact)
        check_files(bundle.folder, bundle.manifest.files, remedy=REMEDY)
        return [sign(bundle.folder, options.key)]
    names = package_names(artifact)
    if not names:
        raise ArtifactError(f"{artifact} is neither a bundle nor a model repository with packages")
    if unknown := next((name for name in packages if name not in names), None):
        raise ArtifactError(f"{artifact} holds no package {unknown}", hint=f"it holds: {', '.join(names)}")
    chosen = list(dict.fromkeys(packages)) or names
    generations = [check_ensemble(artifact, name).generation for name in chosen]
    return [sign(generation, options.key) for generation in generations]
