"""A trial that does not fit in memory is a result, and the sampler learns to avoid it."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from visweep.analysis.report import write_report
from visweep.search.samplers import make_sampler, propose
from visweep.search.summary import print_summary
from visweep.storage.check import check
from visweep.training.results import OUT_OF_MEMORY

MakeSweep = Callable[..., Any]

TOO_WIDE = 2**22
"""No machine holds the weights: torch's own allocator refuses them."""

SPACE = {
    "embed_dim": CategoricalDistribution([8, TOO_WIDE]),
    "drop": FloatDistribution(0.0, 0.3),
}


def exhausted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.user_attrs.get("ended") == OUT_OF_MEMORY]


@pytest.fixture
def done(sweep: MakeSweep, storage: Any) -> Any:
    """A finished sweep of 8 trials, 4 of which ran out of memory one after the other."""
    sweep(8, space=SPACE)
    study = optuna.load_study(study_name="study", storage=storage)
    for width in [8] + [TOO_WIDE] * 4 + [8] * 3:
        study.enqueue_trial({"embed_dim": width}, skip_if_exists=False)
    return sweep(8, space=SPACE).run()


class TestSweep:
    def test_goes_on_to_its_budget(self, done: Any, sweep: MakeSweep) -> None:
        out = exhausted(done.trials)
        assert len(out) == 4
        finished = [t for t in done.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        assert len(finished) == 8
        assert not any("traceback" in t.user_attrs for t in done.trials)
        for trial in out:
            assert trial.state == TrialState.PRUNED
            assert trial.value is None
            assert trial.intermediate_values == {}
            said = trial.user_attrs["out_of_memory"]
            assert said.startswith("the model does not fit in memory: ")
            assert trial.user_attrs["epochs"] == 0
            assert trial.user_attrs["device"] == "cpu"
        assert [t.ended for t in done.heard.endings].count(OUT_OF_MEMORY) == 4
        assert done.heard.last.pruned == 4
        assert sweep(8, space=SPACE).run().heard.began_with == []

    def test_is_sound_and_can_be_shown(self, done: Any, file: Path, tmp_path: Path) -> None:
        assert check(f"sqlite:///{file}") == []
        shown(done, tmp_path)

    def test_without_any_result_can_be_shown(
        self, sweep: MakeSweep, specification: Any, tmp_path: Path
    ) -> None:
        """Its baseline ran out of memory, too."""
        wide = specification.model.replace(embed_dim=TOO_WIDE)
        space = {"embed_dim": CategoricalDistribution([TOO_WIDE])}
        done = sweep(4, model=wide, space=space).run()
        assert len(exhausted(done.trials)) == 4
        assert done.heard.last.best is None
        shown(done, tmp_path)


def shown(done: Any, folder: Path) -> None:
    printed = io.StringIO()
    print_summary(Console(file=printed, width=100), "study", done.trials, 3)
    assert "of them pruned" in printed.getvalue()
    assert "saved" not in printed.getvalue()  # what does not fit was not pruned to save epochs
    write_report(done.opened.study, folder / "report.html")
    assert OUT_OF_MEMORY in (folder / "report.html").read_text()


class TestSampler:
    """The larger `width`, the better; above 0.7 it does not fit."""

    space: ClassVar = {"width": FloatDistribution(0.0, 1.0), "idle": FloatDistribution(0.0, 1.0)}

    def too_wide(self, sampler: str, count: int, *, known: bool, epochs: int = 0) -> int:
        """How many of so many next proposals would not fit; `known` is whether it is told."""
        study = optuna.create_study(direction="maximize")
        for number in range(30):
            params = {"width": number % 20 / 19, "idle": number % 7 / 6}
            fits = params["width"] < 0.7
            if not fits and not known:
                continue
            trial = create_trial(
                state=TrialState.COMPLETE if fits else TrialState.PRUNED,
                value=params["width"] if fits else None,
                params=params,
                distributions=self.space,
                # It reported so many epochs before memory ran out, and did well.
                intermediate_values={} if fits else dict.fromkeys(range(1, 1 + epochs), 0.99),
                user_attrs={} if fits else {"ended": OUT_OF_MEMORY},
            )
            study.add_trial(trial)
        return sum(self.next_width(study, sampler) > 0.72 for _ in range(count))

    def next_width(self, study: optuna.Study, sampler: str) -> float:
        study.add_trial(create_trial(state=TrialState.WAITING))
        waiting = study.get_trials(deepcopy=False)[-1]
        made = make_sampler(sampler, 0, waiting.number)
        return float(propose(study, made, waiting, self.space)["width"])

    @pytest.mark.parametrize("epochs", [0, 3])
    @pytest.mark.parametrize(
        ("sampler", "count"), [("tpe", 100), pytest.param("gp", 12, marks=pytest.mark.slow)]
    )
    def test_avoids_what_did_not_fit(self, sampler: str, count: int, epochs: int) -> None:
        told = self.too_wide(sampler, count, known=True, epochs=epochs)
        untold = self.too_wide(sampler, count, known=False)
        assert untold >= count / 5
        assert told <= untold / 2

    def test_a_pruned_trial_counts_more_than_one_that_did_not_fit(self) -> None:
        """While few trials are completed, the best pruned ones are what it takes for good."""
        study = optuna.create_study(direction="maximize")
        for number in range(40):
            width = number / 39
            study.add_trial(
                create_trial(
                    state=TrialState.PRUNED,
                    params={"width": width, "idle": 0.5},
                    distributions=self.space,
                    intermediate_values={1: 0.1} if width < 0.5 else {2: 0.9},
                    user_attrs={} if width < 0.5 else {"ended": OUT_OF_MEMORY},
                )
            )
        widths = [self.next_width(study, "tpe") for _ in range(20)]
        assert sum(width < 0.5 for width in widths) >= 16


@pytest.mark.slow
def test_a_sweep_in_a_process_that_may_not_take_more(
    file: Path, environment: dict[str, str], open_file: Callable[[Path], Any]
) -> None:
    child = Path(__file__).with_name("memory_child.py")
    out = subprocess.run(
        [sys.executable, child, file, "10"], capture_output=True, text=True, env=environment
    )
    assert out.returncode == 0, out.stderr
    study = optuna.load_study(study_name="study", storage=open_file(file))
    trials = [t for t in study.trials if t.datetime_start is not None]
    assert {t.state.name for t in trials} == {"COMPLETE", "PRUNED"}
    assert len(trials) == 10
    wide = [t for t in trials if t.params["embed_dim"] == 4096]
    assert len(wide) >= 4
    assert exhausted(trials) == wide
    narrow = [t for t in trials if t.params["embed_dim"] == 8]
    assert {t.state for t in narrow} == {TrialState.COMPLETE}
    for trial in narrow:
        assert ("micro_batch" in trial.user_attrs) == (trial.params["patch_size"] == 2)
