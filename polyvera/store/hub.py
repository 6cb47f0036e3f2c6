"""Adapters on a hub: the few files of one repository that are an adapter, fetched and sent."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from warnings import warn

from polyvera.errors import FormatError, StoreUnavailableError
from polyvera.store.foreign import CONFIG_NAME, ForeignWarning

REPOSITORY = re.compile(r"([\w.\-]+/[\w.\-]+)(?:@([\w.\-/]+))?")
FILES = (CONFIG_NAME, "adapter_model.safetensors", "adapters.safetensors", "README.md")
TIMEOUT_S = 20.0
REFERENCE = "refs/"  # a revision that is there already, such as that of a pull request
DENIED = (401, 403)


def located(source: str, subfolder: str = "", more_files: Sequence[str] = ()) -> Path:
    """The folder of an adapter: one on this machine, or OWNER/NAME[@REVISION] of a hub, of which a copy is fetched.

    subfolder: inside of it. more_files: that are also fetched. Raises FormatError for what is neither,
    StoreUnavailableError where the hub is not reached or has no such repository.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path / subfolder
    if source[:1] in "./~" or not REPOSITORY.fullmatch(source):
        raise FormatError(f"there is no folder {source!r}, and a repository of a hub is written OWNER/NAME[@REVISION]")
    return fetched(source, subfolder, more_files)


def fetched(source: str, subfolder: str = "", more_files: Sequence[str] = ()) -> Path:
    """The folder of a copy of OWNER/NAME[@REVISION].

    Warns where it is an earlier copy, since the hub did not answer. Raises FormatError for another name or where no
    adapter is in it, StoreUnavailableError.
    """
    from huggingface_hub import snapshot_download

    repository, revision = _parsed(source)
    inside = f"{subfolder.strip('/')}/" if subfolder else ""
    wanted = [inside + name for name in (*FILES, *more_files)]
    reason = _refusal(repository, revision)
    kept: dict[str, Any] = {"local_files_only": bool(reason), "etag_timeout": TIMEOUT_S, "endpoint": _endpoint()}
    try:
        path = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, **kept))
    except Exception as error:  # of the network, the hub, its client
        raise StoreUnavailableError(
            f"{source!r} is not a folder here, and was not fetched from {_endpoint() or 'the hub'} either "
            f"({reason or _said(error)}): give the folder of a copy"
        ) from error
    if not (path / subfolder / CONFIG_NAME).is_file():
        raise FormatError(
            f"{source} has no {inside}{CONFIG_NAME}, as adapters of PEFT and mlx-lm have: name the adapter's folder in "
            "it, --subfolder, or another repository"
        )
    if reason:
        found = f"{source} is a copy that was fetched before, and may be an old one"
        warn(f"{found}: {_endpoint() or 'the hub'} did not give it ({reason})", ForeignWarning, stacklevel=2)
    return path / subfolder


def _refusal(repository: str, revision: str | None) -> str:
    """Why the hub says nothing of a repository, '' where it does."""
    from huggingface_hub import HfApi

    try:
        HfApi(endpoint=_endpoint()).model_info(repository, revision=revision, timeout=TIMEOUT_S)
    except Exception as error:  # of the network, the hub, its client
        return _said(error)
    return ""


def send(folder: Path, repository: str, *, private: bool = False, message: str = "") -> str:
    """Uploads a folder into OWNER/NAME[@REVISION]; a repository or branch that is new is made. Returns its address.

    Raises FormatError for another name, StoreUnavailableError.
    """
    from huggingface_hub import HfApi

    name, revision = _parsed(repository)
    try:
        api = HfApi(endpoint=_endpoint())
        api.create_repo(name, private=private, exist_ok=True)
        if revision and not revision.startswith(REFERENCE):
            api.create_branch(name, branch=revision, exist_ok=True)
        made: Any = api.upload_folder(
            folder_path=folder, repo_id=name, revision=revision, commit_message=message or "Upload an adapter"
        )
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = ": is a token set, by `hf auth login` or HF_TOKEN, and may it write there?" if status in DENIED else ""
        raise StoreUnavailableError(
            f"{repository} was not sent to {_endpoint() or 'the hub'} ({_said(error)}){hint}"
        ) from error
    return str(made.commit_url)


def _parsed(source: str) -> tuple[str, str | None]:
    found = REPOSITORY.fullmatch(source)
    if found is None:
        raise FormatError(f"{source!r} is not a repository of a hub, which is written OWNER/NAME[@REVISION]")
    return found[1], found[2]


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__
