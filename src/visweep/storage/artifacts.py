"""The checkpoints of one study, a file per trial and lease generation."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from visweep.storage.specification import BRANCH, STUDY_ID

_NAME = re.compile(r"trial-(\d+)\.g(\d+)\.ckpt")


def folder_name(study: str, attributes: Mapping[str, Any]) -> str:
    """The name of the folder that holds a study's checkpoints and artifacts.

    A deleted study of the same name had another one, and so has every copy that may go its own
    way, so that both can lie side by side.

    Args:
        study: the study's name.
        attributes: the study's user attributes.
    """
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in study)
    name = f"{safe[:60]}-{str(attributes.get(STUDY_ID, 'unknown'))[:8]}"
    branch = attributes.get(BRANCH, "")
    return f"{name}-{hashlib.sha256(branch.encode()).hexdigest()[:8]}" if branch else name


class Checkpoints:
    """Where the trials of one study keep their checkpoints.

    A file's name carries the generation of the lease under which it is written, so that a worker
    whose lease was adopted cannot overwrite what its successor writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int, generation: int) -> Path:
        """Where a worker writes the checkpoint of its trial."""
        return self.folder / f"trial-{number:05d}.g{generation}.ckpt"

    def inherit(self, number: int, generation: int) -> Path:
        """The path for this generation, holding what the newest earlier one left, if any."""
        own = self.path(number, generation)
        earlier = [(g, p) for n, g, p in self._found() if n == number and g < generation]
        if earlier and not own.exists():
            max(earlier)[1].replace(own)
        for _, path in earlier:
            path.unlink(missing_ok=True)
        # What a killed worker was writing is called so until it is complete.
        for before in range(1, generation):
            for unfinished in self.folder.glob(f".{self.path(number, before).name}.*"):
                unfinished.unlink(missing_ok=True)
        return own

    def latest(self, number: int) -> Path | None:
        """The newest checkpoint of a trial."""
        found = [(g, p) for n, g, p in self._found() if n == number]
        return max(found)[1] if found else None

    def all(self) -> list[tuple[int, int, Path]]:
        """Number, generation and path of every checkpoint, in this order."""
        return sorted(self._found())

    def thin(self, finished: Collection[int], keep: Collection[int]) -> None:
        """Delete the checkpoints of finished trials, except those to keep."""
        for number, _, path in self._found():
            if number in finished and number not in keep:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[tuple[int, int, Path]]:
        if not self.folder.is_dir():
            return []
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [(int(m[1]), int(m[2]), path) for m, path in matches if m is not None]
