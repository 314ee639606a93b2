"""Seeds that follow from the study's seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import count


def seed_for(study_seed: int, purpose: str, number: int = 0) -> int:
    """A 32-bit seed for one purpose and trial; the same on every machine."""
    digest = hashlib.sha256(f"{study_seed}:{purpose}:{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def replica_seeds(study_seed: int, count: int) -> tuple[int, ...]:
    """The seeds of the replicas, common to all trials of a study but replicates."""
    return tuple(1000 * study_seed + replica for replica in range(count))


def new_seeds(study_seed: int, purpose: str, common: Collection[int]) -> tuple[int, ...]:
    """As many seeds as are common to the study's trials, all of them others; see `seed_for`."""
    numbers = count()
    chosen: list[int] = []
    while len(chosen) < len(common):
        seed = seed_for(study_seed, purpose, next(numbers))
        if seed not in (*common, *chosen):
            chosen.append(seed)
    return tuple(chosen)
