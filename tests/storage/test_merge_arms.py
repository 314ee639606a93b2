"""Two copies of a study of arms have trained the same points: each counts once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from visweep.config import TrainConfig, ViTConfig
from visweep.storage import rows
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.backup import file_url, frozen_copy
from visweep.storage.folder import Folder
from visweep.storage.merge import Merged, merge
from visweep.storage.pack import pack, unpack
from visweep.storage.replicates import REPLICATE, SEEDS
from visweep.storage.rows import StudyRows
from visweep.storage.specification import BUDGET, SPECIFICATION, Arm
from visweep.storage.unite import essence, unite
from visweep.storage.whereabouts import artifact_folder

NAME = "night-run"
EPOCHS = 4
ARMS = ("a", "b")
SPACE = {"arm": CategoricalDistribution(ARMS), "seed": IntDistribution(0, 999)}
Point = tuple[str, int]


def read(path: Path) -> StudyRows:
    with frozen_copy(file_url(path)) as connection:
        return rows.read(connection, NAME)


def trained(
    one: Any,
    point: Point,
    epochs: int = EPOCHS,
    state: TrialState | None = TrialState.COMPLETE,
    accuracy: float = 0.5,
    **attributes: Any,
) -> None:
    """A run of an arm; one without a state goes on later."""
    lease = one.take()
    if not lease.adopted:
        one.slots.begin(lease, dict(zip(SPACE, point, strict=True)), SPACE)
    one.train(lease, epochs, accuracy)
    one.storage.set_trial_attributes(lease.trial_id, attributes)
    if state is None:
        one.slots.release(lease)
    else:
        one.finish(lease, state)


def points(study: StudyRows) -> Counter[Point]:
    """What has begun, by arm and seed."""
    begun = [t.parameters for t in study.trials if t.state != TrialState.WAITING]
    return Counter((ARMS[int(p["arm"] or 0)], int(p["seed"] or 0)) for p in begun)


def values(study: StudyRows) -> dict[Point, float | None]:
    """The last of each run that was completed."""
    return {
        next(iter(points(StudyRows("", {}, (t,))))): t.curve[max(t.curve)]
        for t in study.trials
        if t.state == TrialState.COMPLETE
    }


def aside(path: Path) -> list[Any]:
    study = read(path)
    folder = artifact_folder(file_url(path)) / folder_name(NAME, study.attributes) / "set-aside"
    return [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]


@pytest.fixture
def machines(tmp_path: Path, sweep: Any) -> tuple[Any, Any]:
    """Two copies of a study of two arms and two seeds, one run of which was trained before."""
    first, second = (tmp_path / name / "studies.db" for name in ("first", "second"))
    for path in (first, second):
        path.parent.mkdir()
    one = sweep(first)
    arm = Arm(model=ViTConfig(), train=TrainConfig(epochs=EPOCHS)).to_json()
    identity = one.study.user_attrs[SPECIFICATION]["identity"]
    specification = {"identity": {**identity, "arms": dict.fromkeys(ARMS, arm)}}
    one.study.set_user_attr(SPECIFICATION, specification)
    one.want(4)
    trained(one, ("a", 0))
    pack(file_url(first), NAME, tmp_path / "x.visweep")
    assert unpack(tmp_path / "x.visweep", file_url(second)).compares
    return one, sweep(second)


@pytest.fixture
def merged(machines: tuple[Any, Any], tmp_path: Path) -> Callable[..., tuple[Path, Merged]]:
    """Merge both, or the second with the first."""

    def make(swapped: bool = False) -> tuple[Path, Merged]:
        pair = [tmp_path / name / "studies.db" for name in ("first", "second")]
        target = tmp_path / f"merged-{swapped}" / "studies.db"
        (said,) = merge(*(reversed(pair) if swapped else pair), target)
        require_laws(*map(read, pair), read(target))
        return target, said

    return make


def normal(study: StudyRows) -> tuple[list[str], Any]:
    begun = [t for t in study.trials if t.state != TrialState.WAITING]
    return sorted(map(essence, begun)), (len(study.trials), study.attributes)


def require_laws(one: StudyRows, other: StudyRows, both: StudyRows) -> None:
    """Nothing is lost, merging again changes nothing, and the order matters to numbers alone."""
    for united in (unite(one, other), unite(other, one)):
        assert normal(united.study) == normal(both)
        there = {essence(t) for t in (*united.study.trials, *united.set_aside)}
        for trial in (*one.trials, *other.trials):
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
                assert essence(trial.released()) in there
    for side in (one, other, both):
        assert normal(unite(both, side).study) == normal(both)
        assert normal(unite(side, both).study) == normal(both)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_point_that_both_trained_counts_once(
    machines: tuple[Any, Any], merged: Any, swapped: bool
) -> None:
    here, there = machines
    for one, accuracy in ((here, 0.6), (there, 0.7)):
        trained(one, ("b", 0), accuracy=accuracy)
        trained(one, ("a", 1), accuracy=accuracy)
    target, said = merged(swapped)
    study = read(target)
    assert points(study) == {("a", 0): 1, ("b", 0): 1, ("a", 1): 1}
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3 + ["WAITING"]
    assert study.attributes[BUDGET] == 4
    assert (said.finished, said.budget, said.set_aside, said.twice) == (3, 4, 2, 2)
    lost = aside(target)
    assert len(lost) == 2
    kept = {t.uuid for t in study.trials}
    assert all(each["uuid"] not in kept for each in lost)
    # Whichever counts, its weights are there with it.
    store = Checkpoints(
        Folder(artifact_folder(file_url(target)) / folder_name(NAME, study.attributes))
    )
    assert {number for number, _, _ in store.all()} == {0, 1, 2}


def test_what_only_one_trained_is_there_too(machines: tuple[Any, Any], merged: Any) -> None:
    here, there = machines
    trained(here, ("b", 0), accuracy=0.6)
    trained(there, ("b", 0), accuracy=0.7)
    trained(there, ("a", 1))
    trained(there, ("b", 1))
    target, said = merged()
    assert points(read(target)) == dict.fromkeys([("a", 0), ("b", 0), ("a", 1), ("b", 1)], 1)
    assert (said.finished, said.budget, said.twice) == (4, 4, 1)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_finished_one_counts_and_then_the_longer(
    machines: tuple[Any, Any], merged: Any, swapped: bool
) -> None:
    here, there = machines
    trained(here, ("b", 0), 3, None, accuracy=0.6)
    trained(there, ("b", 0), accuracy=0.7)
    target, said = merged(swapped)
    assert values(read(target))["b", 0] == pytest.approx(0.74)
    assert said.twice == 1


def test_the_beginning_of_the_same_run_is_not_trained_twice(
    machines: tuple[Any, Any], merged: Any
) -> None:
    here, there = machines
    trained(here, ("b", 0), 2, None)
    trained(there, ("b", 0))
    target, said = merged()
    assert points(read(target)) == {("a", 0): 1, ("b", 0): 1}
    assert (said.set_aside, said.twice, aside(target)) == (0, 0, [])


def test_replicates_and_what_failed_stand_for_themselves(
    machines: tuple[Any, Any], merged: Any
) -> None:
    here, there = machines
    for one, seed in ((here, 77), (there, 78)):
        trained(one, ("a", 0), **{REPLICATE: 1, SEEDS: [seed]})
        trained(one, ("b", 0), 1, TrialState.FAIL, accuracy=seed / 100)
    trained(there, ("b", 0))
    target, said = merged()
    assert points(read(target)) == {("a", 0): 3, ("b", 0): 3}
    assert (said.set_aside, said.twice) == (0, 0)


def test_points_that_an_earlier_version_left_twice_stay(
    machines: tuple[Any, Any], merged: Any
) -> None:
    here, there = machines
    trained(here, ("b", 0), accuracy=0.6)
    trained(here, ("b", 0), accuracy=0.62)
    trained(there, ("b", 0), accuracy=0.7)
    target, said = merged()
    assert points(read(target)) == {("a", 0): 1, ("b", 0): 2}
    assert (said.set_aside, said.twice) == (1, 1)


def test_a_search_is_united_as_ever(tmp_path: Path, sweep: Any) -> None:
    first, second = (tmp_path / name / "studies.db" for name in ("first", "second"))
    for path in (first, second):
        path.parent.mkdir()
    one = sweep(first)
    one.want(2)
    pack(file_url(first), NAME, tmp_path / "x.visweep")
    assert not unpack(tmp_path / "x.visweep", file_url(second)).compares
    for path in (first, second):
        sweep(path).run(drop=0.2)
    (said,) = merge(first, second, tmp_path / "merged" / "studies.db")
    assert (said.finished, said.set_aside, said.twice) == (2, 0, 0)
