"""Two copies of a study that went on apart are united: nothing twice, nothing lost."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from visweep.errors import SpecificationMismatch, UsageError
from visweep.storage import rows
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.backup import file_url, frozen_copy
from visweep.storage.folder import Folder
from visweep.storage.merge import merge
from visweep.storage.pack import pack, unpack
from visweep.storage.rows import StudyRows, TrialRows
from visweep.storage.specification import BRANCH, BUDGET
from visweep.storage.tables import FINISHED
from visweep.storage.unite import essence, unite
from visweep.storage.whereabouts import artifact_folder

EPOCHS = 4
NAME = "night-run"


def read(path: Path, name: str = NAME) -> StudyRows:
    with frozen_copy(file_url(path)) as connection:
        return rows.read(connection, name)


def copy(path: Path, folder: str) -> Path:
    """The database as another machine gets it, in a folder of its own."""
    pack(file_url(path), NAME, path.parent / f"{folder}.visweep")
    target = path.parent / folder / "studies.db"
    target.parent.mkdir()
    unpack(path.parent / f"{folder}.visweep", file_url(target))
    return target


def merged(first: Path, second: Path, folder: str) -> Path:
    target = first.parents[1] / folder / "studies.db"
    target.parent.mkdir()
    merge(first, second, target)
    return target


@pytest.fixture
def first(tmp_path: Path) -> Path:
    (tmp_path / "first").mkdir()
    return tmp_path / "first" / "studies.db"


@pytest.fixture
def apart(first: Path, sweep: Any) -> tuple[Path, Path]:
    """Two copies with two trials in common, one of them running, and one waiting slot."""
    one = sweep(first)
    one.want(3)
    one.run(drop=0.1)
    lease = one.begin(drop=0.2)
    one.train(lease, 2)
    one.slots.release(lease)
    one.close()
    return first, copy(first, "second")


def curve(path: Path, number: int) -> list[float | None]:
    return list(read(path).trials[number].curve.values())


def states(path: Path) -> list[str]:
    return [t.state.name for t in read(path).trials]


def set_aside(path: Path) -> list[Any]:
    study = read(path)
    folder = artifact_folder(file_url(path)) / folder_name(NAME, study.attributes) / "set-aside"
    return [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]


def checkpoint(path: Path, number: int) -> bytes | None:
    folder = artifact_folder(file_url(path)) / folder_name(NAME, read(path).attributes)
    latest = Checkpoints(Folder(folder)).latest(number)
    return None if latest is None else latest.read_bytes().rpartition(b"\n")[2]


def test_trials_of_both_are_kept_and_those_of_the_first_keep_their_numbers(
    apart: tuple[Path, Path], sweep: Any
) -> None:
    first, second = apart
    here, there = sweep(first), sweep(second)
    here.want(4)
    lease = here.begin()
    here.train(lease, EPOCHS)
    here.finish(lease)
    assert here.run(drop=0.25) == 2
    there.want(5)
    lease = there.begin()
    there.train(lease, EPOCHS)
    there.finish(lease)
    assert there.run(drop=0.05) == 2
    target = merged(first, second, "merged")
    found = read(target)
    assert [t.parameters["drop"] for t in found.trials[:4]] == [0.1, 0.2, 0.25, 0.05]
    assert [t.number for t in found.trials] == [0, 1, 2, 3, 4]
    assert states(target) == ["COMPLETE"] * 4 + ["WAITING"]
    assert found.attributes[BUDGET] == 5
    assert [len(t.curve) for t in found.trials] == [4, 4, 4, 4, 0]
    assert checkpoint(target, 3) == b"trial 3 epoch 4"
    assert found.trials[3].attributes == read(second).trials[2].attributes


def test_more_finished_trials_than_either_wanted_are_the_budget(
    apart: tuple[Path, Path], sweep: Any
) -> None:
    first, second = apart
    for path, drop in ((first, 0.25), (second, 0.05)):
        one = sweep(path)
        for _ in range(2):
            one.run(drop)
    target = merged(first, second, "merged")
    assert read(target).attributes[BUDGET] == 4
    assert states(target) == ["COMPLETE"] * 4


def test_the_merged_study_goes_on(apart: tuple[Path, Path], sweep: Any) -> None:
    first, second = apart
    sweep(second).want(4)
    target = merged(first, second, "merged")
    one = sweep(target)
    lease = one.begin()
    assert (lease.number, lease.adopted) == (1, True)
    assert checkpoint(target, 1) == b"trial 2 epoch 2"
    one.train(lease, EPOCHS)
    one.finish(lease)
    assert [one.run(), one.run()] == [2, 3]
    assert one.slots.take() is None


def went_on(path: Path, sweep: Any, epochs: int, state: TrialState | None) -> None:
    one = sweep(path)
    lease = one.begin()
    one.train(lease, epochs, accuracy=0.7)
    if state is None:
        one.slots.release(lease)
    else:
        one.finish(lease, state)
    one.close()


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ((4, TrialState.COMPLETE), (3, None)),
        ((3, TrialState.PRUNED), (4, None)),
        ((4, TrialState.COMPLETE), (4, TrialState.FAIL)),
        ((4, TrialState.COMPLETE), (3, TrialState.PRUNED)),
        ((4, None), (3, None)),
    ],
)
def test_where_both_went_on_with_a_trial_one_wins_and_the_other_is_set_aside(
    apart: tuple[Path, Path],
    sweep: Any,
    winner: tuple[int, Any],
    loser: tuple[int, Any],
    swapped: bool,
) -> None:
    first, second = apart[::-1] if swapped else apart
    went_on(first, sweep, *winner)
    other = sweep(second)
    other.study.set_user_attr("note", "mine")
    other.storage.set_trial_attributes(other.trials[1]._trial_id, {"seen": "there"})
    went_on(second, sweep, *loser)
    target = merged(first, second, "merged")
    found = read(target).trials[1]
    assert (len(found.curve), found.state.name) == (
        winner[0],
        winner[1].name if winner[1] else "RUNNING",
    )
    assert checkpoint(target, 1) == f"trial 2 epoch {winner[0]}".encode()
    (aside,) = set_aside(target)
    assert aside["uuid"] == found.uuid
    assert len(aside["tables"]["trial_intermediate_values"]) == loser[0]
    assert {"key": "seen", "value_json": '"there"'} in aside["tables"]["trial_user_attributes"]
    assert len([t for t in read(target).trials if t.uuid == found.uuid]) == 1


def test_equally_long_the_lower_generation_wins(apart: tuple[Path, Path], sweep: Any) -> None:
    first, second = apart
    one = sweep(first)
    one.slots.release(one.begin())
    went_on(first, sweep, 3, None)
    went_on(second, sweep, 3, None)
    assert read(first).trials[1].generation > read(second).trials[1].generation
    target = merged(first, second, "merged")
    assert read(target).trials[1].generation == read(second).trials[1].generation
    assert len(set_aside(target)) == 1


def test_the_earlier_state_of_a_trial_that_one_side_left_alone_is_not_set_aside(
    apart: tuple[Path, Path], sweep: Any
) -> None:
    first, second = apart
    went_on(second, sweep, 4, TrialState.COMPLETE)
    target = merged(first, second, "merged")
    assert states(target)[:2] == ["COMPLETE", "COMPLETE"]
    assert set_aside(target) == []


def mark(path: Path, sweep: Any, **attributes: Any) -> None:
    """As `visweep shift` does, to the trial that has finished."""
    one = sweep(path)
    one.storage.set_trial_attributes(one.trials[0]._trial_id, attributes)
    one.close()


@pytest.mark.parametrize("swapped", [False, True])
def test_what_was_written_to_either_copy_of_a_finished_trial_is_kept(
    apart: tuple[Path, Path], sweep: Any, swapped: bool
) -> None:
    first, second = apart
    mark(first, sweep, shift={"pixels": [0, 1]}, a=1)
    mark(second, sweep, b=2)
    pair = (second, first) if swapped else (first, second)
    target = merged(*pair, "merged")
    found = read(target).trials[0]
    own = {"shift": {"pixels": [0, 1]}, "a": 1, "b": 2}
    assert {key: found.attributes.get(key) for key in own} == own
    assert found.attributes["provenance"] == {"host": "h"}
    assert set_aside(target) == []
    assert checkpoint(target, 0) == b"trial 1 epoch 4"


def test_only_what_contradicts_is_set_aside(apart: tuple[Path, Path], sweep: Any) -> None:
    first, second = apart
    mark(first, sweep, shift=1, a=1)
    mark(second, sweep, shift=22, b=2)
    one, other = read(first), read(second)
    for united in (unite(one, other), unite(other, one)):
        found = united.study.trials[0].attributes
        assert [found[key] for key in ("shift", "a", "b")] == [22, 1, 2]
        (rival,) = united.set_aside
        assert rival.attributes["shift"] == 1
        for side in (one, other):
            assert normal(unite(united.study, side).study) == normal(united.study)
    (aside,) = set_aside(merged(first, second, "merged"))
    assert {"key": "shift", "value_json": "1"} in aside["tables"]["trial_user_attributes"]


def test_studies_of_one_file_alone_are_carried_over(first: Path, sweep: Any) -> None:
    second = first.parent.parent / "second" / "studies.db"
    second.parent.mkdir()
    for path, name in ((first, "mine"), (second, "theirs")):
        one = sweep(path, name=name)
        one.want(1)
        one.run()
    target = merged(first, second, "merged")
    for path, name in ((first, "mine"), (second, "theirs")):
        assert read(target, name) == read(path, name)
    assert sorted(p.name[:4] for p in (target.parent / "artifacts").iterdir()) == ["mine", "thei"]


def test_another_specification_is_refused_with_the_field(first: Path, sweep: Any) -> None:
    second = first.parent / "other.db"
    sweep(first, seed=0).close()
    sweep(second, seed=7).close()
    with pytest.raises(SpecificationMismatch) as refused:
        merge(first, second, first.parent / "merged.db")
    assert str(refused.value) == (
        "study 'night-run': seed is in the first file 0, in the second 7; "
        "only copies of one study unite"
    )
    assert not (first.parent / "merged.db").exists()


def test_another_study_of_the_same_name_is_refused(first: Path, sweep: Any) -> None:
    second = first.parent / "other.db"
    sweep(first).close()
    sweep(second).close()
    with pytest.raises(UsageError, match="was begun separately in the two files"):
        merge(first, second, first.parent / "merged.db")


def test_nothing_is_overwritten(apart: tuple[Path, Path]) -> None:
    first, second = apart
    with pytest.raises(UsageError, match=r"--output: .* is there already; give another name"):
        merge(first, second, second)
    # The union of a study with itself has its branch, and so its folder.
    with pytest.raises(UsageError, match=r"--output: .* folder of its own, such as .*/c/c\.db"):
        merge(first, first, first.parent / "c.db")


def test_old_copies_that_went_on_without_identities_agree(
    apart: tuple[Path, Path], sweep: Any
) -> None:
    """As databases of version 1 do, copied by hand; see `test_migration`."""
    first, _ = apart
    second = first.parents[1] / "by-hand" / "studies.db"
    second.parent.mkdir()
    shutil.copyfile(first, second)
    for path, drop in ((first, 0.25), (second, 0.05)):
        one = sweep(path)
        went_on(path, sweep, 4, TrialState.COMPLETE)
        one.run(drop)
        with one.storage.transaction() as connection:
            connection.exec_driver_sql("UPDATE visweep_slots SET uuid = NULL")
        one.close()
    target = merged(first, second, "merged")
    # Equal numbers and equal parameters are one trial; unequal parameters are two.
    assert [t.parameters["drop"] for t in read(target).trials] == [0.1, 0.2, 0.25, 0.05]


# --- The laws ----------------------------------------------------------------

ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("train"),
            st.sampled_from([0.05, 0.1, 0.2]),
            st.integers(0, EPOCHS),
            st.sampled_from(["leave", "COMPLETE", "PRUNED", "FAIL"]),
        ),
        st.tuples(st.just("want"), st.integers(0, 6)),
        st.tuples(st.just("enqueue"), st.sampled_from([0.01, 0.02])),
        st.tuples(st.just("add"), st.sampled_from([0.5, 0.6])),
        st.tuples(st.just("attribute"), st.sampled_from(["a", "bb"])),
        st.tuples(st.just("mark"), st.sampled_from(["shift", "seen"]), st.sampled_from([1, 22])),
        st.tuples(st.just("fail before it began")),
    ),
    max_size=6,
)


def act(one: Any, action: tuple[Any, ...]) -> None:
    match action:
        case ("train", drop, epochs, end):
            lease = one.slots.take()
            if lease is None:
                return
            if not lease.adopted:
                one.slots.begin(lease, {"drop": drop, "heads": 4}, one.space)
            one.train(lease, epochs)
            done = len(one.storage.get_trial(lease.trial_id).intermediate_values)
            if end == "leave" or (end == "COMPLETE" and not done):
                one.slots.release(lease)
            else:
                one.finish(lease, TrialState[end])
        case ("want", budget):
            one.want(budget)
        case ("enqueue", drop):
            one.study.enqueue_trial({"drop": drop})
        case ("add", value):
            one.study.add_trial(create_trial(state=TrialState.COMPLETE, value=value))
        case ("attribute", value):
            one.study.set_user_attr("note", value)
        case ("mark", key, value):
            mark_first(one, key, value)
        case _:
            fail_next(one)
    one.slots.set_budget(one.study.user_attrs[BUDGET])


def mark_first(one: Any, key: str, value: int) -> None:
    ended = [t for t in one.trials if t.state in FINISHED]
    if ended:
        one.storage.set_trial_attributes(ended[0]._trial_id, {key: value})


def fail_next(one: Any) -> None:
    lease = one.slots.take()
    if lease is not None and not lease.adopted:
        one.finish(lease, TrialState.FAIL)


def acted(sweep_type: Callable[..., Any], path: Path, actions: list[tuple[Any, ...]]) -> None:
    one = sweep_type(path)
    if BUDGET not in one.study.user_attrs:
        one.want(3)
    for action in actions:
        act(one, action)
    one.close()


def said(trial: TrialRows) -> str:
    if trial.state == TrialState.WAITING:
        return f"waits {trial.enqueued}"
    return essence(trial)


def normal(study: StudyRows) -> tuple[list[str], Any]:
    """What must be equal, up to leases and the order of numbers."""
    return sorted(map(said, study.trials)), dict(sorted(study.attributes.items()))


def numbered(study: StudyRows) -> list[str]:
    return [said(trial) for trial in study.trials]


@pytest.mark.slow
@settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.reuse, Phase.generate),  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)
@given(common=ACTIONS, here=ACTIONS, there=ACTIONS)
def test_the_laws(
    sweep_type: Any,
    empty_database: Path,
    common: list[Any],
    here: list[Any],
    there: list[Any],
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (Path(folder) / name / "studies.db" for name in ("first", "second"))
        first.parent.mkdir()
        shutil.copyfile(empty_database, first)
        acted(sweep_type, first, common)
        # As unpacking does, in a fraction of the time.
        shutil.copytree(first.parent, second.parent)
        other = sweep_type(second)
        before = other.folder
        other.study.set_user_attr(BRANCH, "cafe0123")
        if before.exists():
            before.rename(other.folder)
        other.close()
        acted(sweep_type, first, here)
        acted(sweep_type, second, there)
        a, b = read(first), read(second)
        c = read(merged(first, second, "merged"))
        check_laws(a, b, c)
        # Through files once more: what is written is what was united.
        again = merged(first.parents[1] / "merged" / "studies.db", second, "again")
        assert numbered(read(again)) == numbered(c)
        # The budget is exact: a worker has nothing to add or to remove.
        one = sweep_type(again)
        before = len(one.trials)
        one.slots.set_budget(one.study.user_attrs[BUDGET])
        assert len(one.trials) == before
        one.close()


def check_laws(a: StudyRows, b: StudyRows, c: StudyRows) -> None:
    # Merging again changes nothing, whichever way.
    assert normal(unite(a, a).study) == normal(a)
    for side in (a, b, c):
        united = unite(c, side).study
        assert normal(united) == normal(c)
        assert numbered(united) == numbered(c)
        assert normal(unite(side, c).study) == normal(c)
    # The order matters to numbers alone.
    assert normal(unite(b, a).study) == normal(c)
    assert [t.number for t in c.trials] == list(range(len(c.trials)))
    # The trials of the first keep their numbers.
    begun = [t for t in a.trials if t.uuid is not None]
    assert [c.trials[t.number].uuid for t in begun] == [t.uuid for t in begun]
    # Nothing twice, nothing lost.
    identities = [t.uuid for t in c.trials if t.uuid is not None]
    assert len(identities) == len(set(identities))
    assert set(identities) == {t.uuid for s in (a, b) for t in s.trials if t.uuid is not None}
    aside = unite(a, b).set_aside
    kept = {essence(t) for t in (*c.trials, *aside)}
    for trial in (*a.trials, *b.trials):
        if trial.state == TrialState.WAITING or essence(trial.released()) in kept:
            continue
        # All that it says is said by the copy that went on.
        later = next(t for t in c.trials if t.uuid == trial.uuid)
        assert trial.state == TrialState.RUNNING or trial.attributes.items() <= (
            later.attributes.items()
        )
        assert trial.curve.items() <= later.curve.items()
    # Curves have no gaps.
    for trial in c.trials:
        assert list(trial.curve) == list(range(1, len(trial.curve) + 1))
    ended = [t for t in c.trials if t.slot is not None and t.state in FINISHED]
    assert c.attributes[BUDGET] >= len(ended)
    assert (c.attributes.get(BRANCH) or "trunk") != a.attributes.get(BRANCH, "")
