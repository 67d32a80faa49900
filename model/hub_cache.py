# SPDX-License-Identifier: Apache-2.0
"""Folders of the Hugging Face cache: models--OWNER--NAME/snapshots/COMMIT, whose files are links into blobs/."""

from __future__ import annotations

from pathlib import Path

from vorta_trt.model.errors import CheckpointError

_PREFIX, _SNAPSHOTS = "models--", "snapshots"


def snapshot_of(path: Path) -> Path:
    """The snapshot of a repository's folder in the cache: that of `main`, or the only one; any other path as it is.

    Raises:
        CheckpointError: The folder has no snapshot, or several without a `main`.
    """
    if not path.name.startswith(_PREFIX) or not (path / _SNAPSHOTS).is_dir():
        return path
    main = path / "refs" / "main"
    snapshots = sorted(entry for entry in (path / _SNAPSHOTS).iterdir() if entry.is_dir())
    if main.is_file():
        snapshot = path / _SNAPSHOTS / main.read_text(encoding="utf-8").strip()
        if snapshot in snapshots:
            return snapshot
    if len(snapshots) == 1:
        return snapshots[0]
    found = ", ".join(entry.name for entry in snapshots) or "none"
    raise CheckpointError(
        f"checkpoint {path}: is a folder of the Hugging Face cache with {len(snapshots)} snapshots ({found}) and no "
        f"refs/main among them; give one of {path / _SNAPSHOTS}, or download it again with `hf download`"
    )


def repository_of(path: Path) -> str | None:
    """The name of the repository, without its owner, that a path is or lies in; None outside of the cache."""
    if path.name.startswith(_PREFIX):
        return path.name.rpartition("--")[2]
    for folder in (path, *path.parents):
        if folder.parent.name == _SNAPSHOTS and folder.parent.parent.name.startswith(_PREFIX):
            return folder.parent.parent.name.rpartition("--")[2]
    return None
