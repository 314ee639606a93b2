from __future__ import annotations

from pathlib import Path

import pytest

from visweep.storage.artifacts import Checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "artifacts" / "study")


def leave(checkpoints: Checkpoints, number: int, generation: int, content: str = "") -> Path:
    path = checkpoints.path(number, generation)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or f"{number} {generation}")
    return path


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_a_new_trial_inherits_nothing(checkpoints: Checkpoints) -> None:
    path = checkpoints.inherit(3, 1)
    assert path == checkpoints.path(3, 1)
    assert not path.exists()
    assert not checkpoints.folder.exists()


def test_the_newest_state_is_inherited_under_the_new_generation(
    checkpoints: Checkpoints,
) -> None:
    for generation in (2, 9, 10):
        leave(checkpoints, 3, generation)
    leave(checkpoints, 4, 11)
    path = checkpoints.inherit(3, 12)
    assert path.read_text() == "3 10"
    assert names(checkpoints) == ["trial-00003.g12.ckpt", "trial-00004.g11.ckpt"]


def test_what_a_fenced_worker_writes_later_does_not_replace_it(checkpoints: Checkpoints) -> None:
    leave(checkpoints, 3, 1, "epoch 4")
    adopted = checkpoints.inherit(3, 2)
    leave(checkpoints, 3, 1, "epoch 5, by the worker that lost the lease")
    assert adopted.read_text() == "epoch 4"
    assert checkpoints.latest(3) == adopted
    assert checkpoints.inherit(3, 2).read_text() == "epoch 4"
    assert names(checkpoints) == ["trial-00003.g2.ckpt"]


def test_half_a_file_of_a_killed_worker_is_removed(checkpoints: Checkpoints) -> None:
    leave(checkpoints, 3, 1)
    (checkpoints.folder / ".trial-00003.g1.ckpt.ab12cd").write_text("half")
    (checkpoints.folder / ".trial-00004.g1.ckpt.ab12cd").write_text("another worker's, growing")
    checkpoints.inherit(3, 2)
    assert names(checkpoints) == [".trial-00004.g1.ckpt.ab12cd", "trial-00003.g2.ckpt"]


def test_thinning_keeps_the_best_and_the_running(checkpoints: Checkpoints) -> None:
    for number in range(5):
        leave(checkpoints, number, 1)
    leave(checkpoints, 0, 2)
    (checkpoints.folder / "notes.txt").write_text("the user's own")
    checkpoints.thin(finished={0, 1, 2, 3}, keep={2})
    assert names(checkpoints) == ["notes.txt", "trial-00002.g1.ckpt", "trial-00004.g1.ckpt"]
    assert checkpoints.latest(0) is None
    checkpoints.discard()
    assert not checkpoints.folder.exists()
    checkpoints.discard()
