"""Uploading a folder of files to the Hugging Face hub in one commit.

Here: the call, and its errors as one line. Elsewhere: which files may leave (reporting/push_command.py). The address is
``HF_ENDPOINT``, the token the one that ``hf auth login`` or ``HF_TOKEN`` gave, as everywhere in that ecosystem.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safesynthdp.errors import ConfigError, SafeSynthError


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that the hub cannot have.

    Raises:
        ConfigError: If it is not ``OWNER/NAME``.
    """
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo_id):
        raise ConfigError(f"repo_id={repo_id} is no name on the hub; give OWNER/NAME")


def push_files(
    files: Mapping[str, Path | bytes],
    *,
    repo_id: str,
    repo_type: Literal["model", "dataset"],
    is_private: bool,
    message: str,
) -> str:
    """Create the repository if it is not there, upload all files in one commit, and return the commit's address.

    Args:
        files: Path in the repository -> file here, or its content.
        repo_id: ``OWNER/NAME``.
        repo_type: What it is.
        is_private: Of a repository that is created now; one that exists keeps its own setting.
        message: Of the commit.

    Raises:
        SafeSynthError: If the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=is_private, exist_ok=True)
        done = api.create_commit(repo_id, operations, repo_type=repo_type, commit_message=message)
    except LocalTokenNotFoundError as error:
        raise SafeSynthError("the hub asks for a token; run `hf auth login` or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        raise SafeSynthError(f"the hub refused the upload to {repo_id} (HTTP {status}); check the token") from error
    except (_transport_error(HfHubHTTPError), OSError) as error:
        raise SafeSynthError(f"the hub at {api.endpoint} cannot be reached ({type(error).__name__})") from error
    return str(done.commit_url)


def _transport_error(refused: type[Exception]) -> type[Exception]:
    """Return what the library's HTTP client raises without an answer, whichever client that is (httpx, httpx2, ...).

    It is no OSError; the hub's own error derives from it.
    """
    return next((kind for kind in refused.__mro__[1:] if kind.__name__ == "HTTPError"), refused)
