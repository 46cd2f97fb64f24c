"""Sharing on the Hugging Face Hub; token, endpoint and offline mode are as its own environment variables say."""

from __future__ import annotations

from pathlib import Path

from export.checkpoint import first_line
from serving.errors import ArtifactError


def push(folder: Path, repository: str, *, private: bool, within: str = "") -> str:
    """Upload an artifact as one commit; the repository is made where there is none.

    Args:
        within: folder of the repository that takes it; empty: its root.

    Returns:
        Where it can be seen.

    Raises:
        ArtifactError: the Hub did not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, path_in_repo=within or None, commit_message=f"Add {within or 'the model'}"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise ArtifactError(
            f"the Hub did not take {folder}: {first_line(error)}",
            hint="it stays here; check the network, HF_TOKEN and the repository's name, and give the same command again",
        ) from error
    return str(commit.commit_url)
