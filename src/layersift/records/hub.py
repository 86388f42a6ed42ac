"""Files to and from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from layersift.errors import LayersiftError, wrap_library_errors


def upload(directory: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Put a directory's files into a model repository, which is made where there is none; its address.

    Raises:
        LayersiftError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with wrap_library_errors(
        LayersiftError, f"the Hub did not take {repo!r}", "log in with `hf auth login`, or give a token"
    ):
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=directory, commit_message="Upload by layersift")
    return str(made)


def download(repo: str, name: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """One file of a model repository, on this disk.

    Raises:
        LayersiftError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    with wrap_library_errors(
        LayersiftError, f"cannot get {name} of {repo!r}: no such directory here, nor did the Hub give it"
    ):
        return Path(hf_hub_download(repo, name, revision=revision, token=token))
