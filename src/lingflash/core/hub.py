"""From what the user named to a folder on disk: the bundled model, a local folder, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from lingflash.core.config import BUNDLED_MODEL
from lingflash.core.errors import ModelLoadError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


def bundled_folder() -> Path:
    """Folder of ling-nano inside the package."""
    return Path(__file__).resolve().parent.parent / "assets" / BUNDLED_MODEL


def resolve_model(name: str) -> Path:
    """Find a model's folder; a hub id is downloaded (or taken from the hub's cache) if not local.

    Raises:
        ModelLoadError: nothing of that name, or the download failed.
    """
    if name == BUNDLED_MODEL:
        return bundled_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelLoadError(
            f"{name} is a file; give the folder that holds config.json and *.safetensors."
        )
    if not _HUB_ID.fullmatch(name):
        raise ModelLoadError(
            f"Model {name!r} is neither a folder nor a hub id such as inclusionAI/Ling-2.6-flash; "
            f"'{BUNDLED_MODEL}' is the bundled one."
        )
    return _download(name)


def _download(hub_id: str) -> Path:
    # Imported late: it is slow to load and needed for hub ids alone.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_FILES))
    except RepositoryNotFoundError:
        raise ModelLoadError(
            f"The hub has no model {hub_id!r}, or it needs a login (HF_TOKEN)."
        ) from None
    except LocalEntryNotFoundError:
        raise ModelLoadError(
            f"{hub_id} is not on this machine and the hub cannot be reached (offline?). "
            "Connect, or copy the checkpoint here and name its folder."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelLoadError(
            f"Downloading {hub_id} failed: {first_line} Run the command again; it resumes."
        ) from None
