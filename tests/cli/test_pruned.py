"""Training pruned trials to their end as a person does: real commands, resumed and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

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
