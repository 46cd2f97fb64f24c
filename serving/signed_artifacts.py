"""Sign bundles and packages, after their files were compared with their manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serving.artifact import MANIFEST, manifest_bytes, parse_manifest
from serving.bundle import REMEDY, load_bundle
from serving.errors import ArtifactError
from serving.integrity import check_ensemble, check_files
from serving.layout import package_names
from serving.manifests import Manifest
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
        return [_sign(bundle.folder, bundle.manifest, options.key)]
    names = package_names(artifact)
    if not names:
        raise ArtifactError(f"{artifact} is neither a bundle nor a model repository with packages")
    if unknown := next((name for name in packages if name not in names), None):
        raise ArtifactError(f"{artifact} holds no package {unknown}", hint=f"it holds: {', '.join(names)}")
    chosen = list(dict.fromkeys(packages)) or names
    checked = [check_ensemble(artifact, name) for name in chosen]
    return [_sign(ensemble.generation, ensemble.manifest, options.key) for ensemble in checked]


def _sign(folder: Path, checked: Manifest, key: Path) -> Path:
    """Sign the manifest that the files of an artifact were compared with.

    Raises:
        ArtifactError: There is another one by now.
    """
    text = manifest_bytes(folder, type(checked))
    if parse_manifest(folder, type(checked), text) != checked:
        raise ArtifactError(f"{folder / MANIFEST} was altered meanwhile", hint="nobody else may write there while it is signed")
    return sign(folder, text, key)
