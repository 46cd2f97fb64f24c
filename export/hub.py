"""Upload artifacts to the Hugging Face Hub. The Hub's environment variables set the token, the endpoint and offline mode."""

from __future__ import annotations

from pathlib import Path

from serving.errors import ArtifactError, first_line


def push(folder: Path, repository: str, *, private: bool, within: str = "") -> str:
    """Upload an artifact as one commit. The repository is created if it does not exist.

    Args:
        folder: The artifact.
        repository: ``OWNER/NAME``, or ``NAME`` for a repository of the user.
        private: Whether a new repository is private.
        within: Target folder in the repository; empty: its root.

    Returns:
        The URL of the commit.

    Raises:
        ArtifactError: The upload failed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        created = api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=created.repo_id, folder_path=folder, path_in_repo=within or None, commit_message=f"Add {within or 'the model'}"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot upload {folder} to the Hub: {first_line(error)}",
            hint="the folder is unchanged; check the network, HF_TOKEN and the repository's name, then run the same command again",
        ) from error
    return str(commit.commit_url)
