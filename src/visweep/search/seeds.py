"""Seeds that follow from the study's seed."""

from __future__ import annotations

import hashlib


def seed_for(study_seed: int, purpose: str, number: int = 0) -> int:
    """A 32-bit seed for one purpose and trial; the same on every machine."""
    digest = hashlib.sha256(f"{study_seed}:{purpose}:{number}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def replica_seeds(study_seed: int, count: int) -> tuple[int, ...]:
    """The seeds of the replicas, common to all trials of a study."""
    return tuple(1000 * study_seed + replica for replica in range(count))
