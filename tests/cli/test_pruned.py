"""Training pruned trials to their end as a person does: real commands, resumed and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from visweep.cli.companions import Source, source_of
from visweep.cli.join import Local
from visweep.cli.pruned import ROOM, Wanted, _begun, _Chosen, _new
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.errors import UsageError
from visweep.search.arms import arms_specification
from visweep.search.study import open_study
from visweep.storage.opening import open_storage
from visweep.storage.specification import OF, SPECIFICATION, Arm, Specification, made_of

SEARCH = ["--trials", 10, "--train-size", 300, "--epochs", 4, "--seeds", 2, "--workers", 1]


def trials(folder: Path, study: str) -> list[FrozenTrial]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/studies.db")
    try:
        return optuna.load_study(study_name=study, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


@pytest.mark.slow
def test_pruned_trials_are_trained_to_their_end(
    launcher: Any, tiny_search: Path, tmp_path: Path
) -> None:
    where = ["--storage", f"sqlite:///{tmp_path}/studies.db"]
    begun = launcher.run(tiny_search, *SEARCH, "--study", "night", *where)
    assert (begun.status, begun.stderr) == (0, "")
    search = trials(tmp_path, "night")
    count = sum(trial.state == TrialState.PRUNED for trial in search)
    assert count >= 4
    run = ["visweep", "pruned", "night", *where, "--workers", 1]
    shown = launcher.run(*run, "--sample", 3, "--dry-run")
    assert (shown.status, shown.stderr) == (0, "")
    assert "6 trials: about" in shown.stdout
    done = launcher.run(*run, "--sample", 3)
    assert (done.status, done.stderr) == (0, "")
    found = trials(tmp_path, "night-pruned")
    assert {trial.state for trial in found} == {TrialState.COMPLETE}
    assert len(found) == 6
    for rerun in found:
        number, seed = int(rerun.params["arm"].split()[1]), rerun.params["seed"]
        before = search[number]
        assert before.state == TrialState.PRUNED
        # On the CPU it is the same run, which now goes on.
        epoch = max(before.intermediate_values)
        then = before.user_attrs["val_accuracy_per_seed"][seed]
        assert rerun.intermediate_values[epoch] == pytest.approx(then, abs=1e-9)
        assert max(rerun.intermediate_values) == 4
    again = launcher.run(*run, "--sample", 3)
    assert (again.status, again.stderr) == (0, "")
    assert len(trials(tmp_path, "night-pruned")) == 6
    fewer = launcher.run(*run, "--sample", 2)
    assert "night-pruned trains 3 pruned trials already; a smaller sample takes" in fewer.stdout
    assert trials(tmp_path, "night-pruned") == found
    # The search goes on, with a new best trial perhaps; the larger sample is of what was there.
    assert (
        launcher.run(tiny_search, *SEARCH, "--trials", 14, "--study", "night", *where).status == 0
    )
    grown = launcher.run(*run, "--sample", 4)
    assert (grown.status, grown.stderr) == (0, "")
    after = trials(tmp_path, "night-pruned")
    assert after[:6] == found
    assert len(after) == 8
    assert {trial.state for trial in after} == {TrialState.COMPLETE}
    points = {(trial.params["arm"], trial.params["seed"]) for trial in after}
    assert len(points) == 8
    assert len({arm for arm, _ in points}) == 4
    assert all(int(arm.split()[1]) < 10 for arm, _ in points)
    page = tmp_path / "night.html"
    launcher.run("visweep", "report", "night", *where, "-o", page)
    written = page.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "4 of 4 pruned trials that were chosen have been trained to the end" in written
    own = launcher.run("visweep", "report", "night-pruned", *where, "-o", page)
    assert own.status == 0
    written = page.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert "4 configurations on cluttered-digits" in written


@pytest.mark.slow
def test_a_sample_of_an_earlier_version_does_not_grow(
    launcher: Any, tiny_search: Path, tmp_path: Path
) -> None:
    """Its study has no other arms."""
    where = ["--storage", f"sqlite:///{tmp_path}/studies.db"]
    assert launcher.run(tiny_search, *SEARCH, "--study", "night", *where).status == 0
    run = ["visweep", "pruned", "night", *where, "--workers", 1]
    launcher.run(*run, "--sample", 1, "--timeout", "0.01s")
    storage = optuna.storages.RDBStorage(where[1])
    study = optuna.load_study(study_name="night-pruned", storage=storage)
    study.set_user_attr("visweep:pool", None)
    storage.engine.dispose()
    line = launcher.run(*run, "--sample", 2).refusal()
    assert line.startswith("--sample: 'night-pruned' was begun by an earlier version, with 1 pru")


SPACE = {"depth": CategoricalDistribution([2, 4])}
MANY = Specification(
    space=SPACE,
    data=DataConfig(),
    fingerprint="f",
    model=ViTConfig(depth=4),
    train=TrainConfig(epochs=2),
    sampler="tpe",
    pruner="none",
    seed=0,
)


def many_pruned(url: str, count: int) -> None:
    """A search, one trial of which completed."""
    storage = open_storage(url)
    study = open_study(storage, "night", MANY, 0).study
    states = [TrialState.COMPLETE, *[TrialState.PRUNED] * count]
    study.add_trials(
        [
            create_trial(
                state=state,
                value=0.9 if state == TrialState.COMPLETE else 0.5,
                params={"depth": 2},
                distributions=dict(SPACE),
                intermediate_values={1: 0.5},
                user_attrs={"provenance": {}},
            )
            for state in states
        ]
    )
    storage.close()


def asked(url: str, sample: int) -> Wanted:
    local = Local(
        storage=url, data_dir=None, artifacts=None, device="cpu", workers=1, pack=1, timeout=None
    )
    return Wanted(study="night", sample=sample, dry_run=True, local=local)


def begin(url: str, source: Source, chosen: _Chosen) -> int:
    """Make the study as the command does, but for training; returns how long it is."""
    arm = Arm(model=MANY.model, train=MANY.train)
    arms = arms_specification(
        {f"trial {number}": arm for number in chosen.arms},
        first_seed=0,
        data=DataConfig(),
        fingerprint="f",
        precision="auto",
    )
    storage = open_storage(url)
    of = {OF: made_of("night", source.identifier, "pruned")}
    attributes = {**of, **chosen.attributes, **chosen.renewed}
    made = open_study(storage, "night-pruned", arms, 1, attributes=attributes).study
    length = len(str(made.user_attrs[SPECIFICATION]))
    storage.close()
    return length


@pytest.mark.slow
@pytest.mark.parametrize("first", [5, ROOM + 20])
def test_a_study_has_room_for_some_hundred_of_thousands(tmp_path: Path, first: int) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    many_pruned(url, 3000)
    source = source_of("night", asked(url, first).local)
    chosen = _new(asked(url, first), source)
    room = max(ROOM, first)
    assert len(chosen.arms) == len({*chosen.arms}) == room
    assert chosen.arms[:first] == chosen.sample.numbers
    assert chosen.sample.others == 3000 - first // 2
    assert begin(url, source, chosen) < 1500 * room
    grown = _begun(asked(url, room), source, "night-pruned")
    assert grown is not None
    assert {*grown.sample.numbers} == {*grown.arms} == {*chosen.arms}
    with pytest.raises(UsageError) as refused:
        _begun(asked(url, room + 1), source, "night-pruned")
    line = str(refused.value)
    assert f"was begun with room for {room} pruned trials; accepted: {first} to {room}, " in line
    assert line.endswith(f"or more after: visweep delete night-pruned --storage {url}")


def test_a_study_of_all_pruned_trials_goes_on(tmp_path: Path) -> None:
    """As earlier versions made them."""
    url = f"sqlite:///{tmp_path}/studies.db"
    many_pruned(url, ROOM + 50)
    source = source_of("night", asked(url, 5).local)
    chosen = _new(asked(url, 5), source)
    others = [n for n in range(1, ROOM + 51) if n not in chosen.sample.numbers]
    begin(url, source, _Chosen(chosen.sample, chosen.pool, (*chosen.sample.numbers, *others)))
    grown = _begun(asked(url, 2 * ROOM), source, "night-pruned")
    assert grown is not None
    assert len(grown.arms) == len(grown.sample.numbers) == ROOM + 50


def test_a_study_without_pruned_trials_is_refused(
    launcher: Any, tiny_search: Path, tmp_path: Path, snapshot: Any
) -> None:
    where = ["--storage", f"sqlite:///{tmp_path}/studies.db"]
    only = ["--trials", 1, "--train-size", 300, "--epochs", 2, "--workers", 1, "--study", "one"]
    assert launcher.run(tiny_search, *only, *where).status == 0
    before = snapshot(tmp_path)
    line = launcher.run("visweep", "pruned", "one", *where).refusal()
    assert line == "STUDY: no trial of 'one' was pruned that could run on"
    assert snapshot(tmp_path) == before
