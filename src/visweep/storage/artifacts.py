"""The artifacts of one study: its checkpoints, a file per trial and lease generation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from visweep.storage.place import Place
from visweep.storage.specification import BRANCH, STUDY_ID

_NAME = re.compile(r"trial-(\d+)\.g(\d+)\.ckpt")
_UNFINISHED = re.compile(rf"\.{_NAME.pattern}\..*")


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
    """The states that the trials of one study go on from.

    A file's name carries the generation of the lease under which it is written, so that a worker
    whose lease was adopted cannot overwrite what its successor writes.

    Args:
        place: where the study's artifacts lie.
    """

    def __init__(self, place: Place) -> None:
        self.place = place

    def path(self, number: int, generation: int) -> Path:
        """Where a worker writes the checkpoint of its trial."""
        return self.place.path(_name(number, generation))

    def inherit(self, number: int, generation: int) -> Path:
        """The path for this generation, holding what the newest earlier one left, if any."""
        own = _name(number, generation)
        found = [(g, name) for n, g, name in self.all() if n == number]
        earlier = [(g, name) for g, name in found if g < generation]
        if earlier and (generation, own) not in found:
            self.place.rename(max(earlier)[1], own)
        for _, name in earlier:
            self.place.remove(name)
        # What a killed worker was writing is called so until it is complete.
        for name in self.place.unfinished():
            match = _UNFINISHED.fullmatch(name)
            if match and int(match[1]) == number and int(match[2]) < generation:
                self.place.remove(name)
        return self.place.fetch(own)

    def keep(self, number: int, generation: int) -> None:
        """See that what was written is where every machine finds it."""
        self.place.keep(_name(number, generation))

    def remove(self, number: int, generation: int) -> None:
        """Delete a checkpoint that cannot be used."""
        self.place.remove(_name(number, generation))

    def latest(self, number: int) -> Path | None:
        """A trial's newest checkpoint, on this machine."""
        found = [(g, name) for n, g, name in self.all() if n == number]
        return self.place.fetch(max(found)[1]) if found else None

    def all(self) -> list[tuple[int, int, str]]:
        """Number, generation and name of every checkpoint, in this order."""
        matches = ((_NAME.fullmatch(name), name) for name in self.place.names())
        return sorted((int(m[1]), int(m[2]), name) for m, name in matches if m is not None)

    def thin(self, finished: Collection[int], keep: Collection[int]) -> None:
        """Delete the checkpoints of finished trials, except those to keep."""
        for number, _, name in self.all():
            if number in finished and number not in keep:
                self.place.remove(name)
        if self.place.copies is not None:
            Checkpoints(self.place.copies).thin(finished, keep=())

    def discard(self) -> None:
        """Delete every artifact of the study."""
        self.place.discard()


def _name(number: int, generation: int) -> str:
    return f"trial-{number:05d}.g{generation}.ckpt"
