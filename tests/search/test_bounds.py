"""A search with limits proposes nothing that breaks them, and says early what cannot be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from visweep.config import ConvNetConfig, TrainConfig, to_json, with_parameters
from visweep.errors import SpecificationMismatch, UsageError
from visweep.search import grid, spaces
from visweep.search.bounds import Bounds, judge_of
from visweep.search.duplicates import trained_as
from visweep.search.study import join_study, specification_of
from visweep.search.worker import SweepFailed, Trainer, Worker
from visweep.storage.limits import Limits
from visweep.storage.specification import Specification
from visweep.training.counts import flops, num_params
from visweep.training.estimate import Calibration, Images
from visweep.training.results import EpochResult, FitResult

MakeSweep = Callable[..., Any]

SPACE = {
    "embed_dim": CategoricalDistribution([8, 16, 32, 64]),
    "depth": IntDistribution(1, 6),
    "drop": FloatDistribution(0.0, 0.3),
}
FINITE = {name: SPACE[name] for name in ("embed_dim", "depth")}
MANY = {
    f"{part}.{stage}": CategoricalDistribution([9, 7, 2, 3, 8])
    for part in ("widths", "depths")
    for stage in range(6)
}
PARAMS = 15_000
"""About a third of the points have fewer."""
SLOW_BLOCKS = Calibration(
    device="cpu",
    precision="float32",
    step={"blocks": 0.5, "passes": 1.0},
    evaluation={"blocks": 0.25},
    memory={},
    held=0.0,
)


def convnet(width: int, depth: int) -> ConvNetConfig:
    return ConvNetConfig(widths=(width,) * 6, depths=(depth,) * 6)


class QuickTrainer(Trainer):
    """Trains nothing: a result is a hash of the configuration."""

    device, threads = "cpu", 1

    def fit(self, model: Any, train: TrainConfig, *, on_epoch: Any, checkpoint: Path) -> FitResult:
        described = json.dumps([to_json(model), to_json(train)], sort_keys=True).encode()
        accuracy = int.from_bytes(hashlib.sha256(described).digest()[:4], "little") / 2**32
        history = (EpochResult(1, (1.0,), (1.0,), (accuracy,), 0.0, 0.0, 1),)
        on_epoch(history[0])
        return FitResult(history, "completed", (0.5,), 1, 1, model)


@pytest.fixture
def quick(sweep: MakeSweep) -> MakeSweep:
    """As `sweep`, but training takes no time."""

    def make(budget: int, **changes: Any) -> Any:
        made = sweep(budget, **{"space": SPACE, "train": {"epochs": 1}, **changes})
        made.worker = Worker(made.opened, QuickTrainer(), made.heard, made.interrupt)
        return made

    return make


def params_of(trials: list[Any], specification: Specification) -> list[int]:
    return [num_params(trained_as(specification, trial)[0]) for trial in trials]


@pytest.fixture
def bounded(specification: Specification) -> Callable[..., Bounds]:
    """Bounds of a study with these limits."""

    def make(**limits: Any) -> Bounds:
        return Bounds(replace(specification, space=SPACE, limits=Limits(**limits)))

    return make


class TestBounds:
    def test_without_limits_everything_is_allowed(self, bounded: Any) -> None:
        assert not bounded()
        assert bounded().allow({"embed_dim": 64, "depth": 6, "drop": 0.0})
        bounded().require_baseline()

    def test_a_limit_itself_is_allowed(self, bounded: Any, specification: Specification) -> None:
        point = {"embed_dim": 16, "depth": 2, "drop": 0.1}
        model, _ = with_parameters(specification.model, specification.train, point)
        for name, value in (("max_params", num_params(model)), ("max_flops", flops(model))):
            assert bounded(**{name: value}).excess(point) is None
            option = f"--{name.replace('_', '-')} {value - 1}"
            assert bounded(**{name: value - 1}).excess(point).startswith(f"{option}: it ")

    def test_seconds_are_judged_as_the_study_says(self, bounded: Any) -> None:
        judge = judge_of(SLOW_BLOCKS, Images(train=200, val=130))
        limits = {"max_epoch_seconds": 6.0, "judge": json.loads(json.dumps(judge))}
        # Three steps of 1 s and 0.5 s a block, two evaluations of 0.25 s a block.
        assert bounded(**limits).allow({"embed_dim": 8, "depth": 1, "drop": 0.0})
        excess = bounded(**limits).excess({"embed_dim": 8, "depth": 2, "drop": 0.0})
        assert excess == "--max-epoch-seconds 6: it takes an estimated 7 s per epoch"

    def test_the_baseline_must_be_allowed(self, bounded: Any, specification: Any) -> None:
        baseline = num_params(specification.model)
        bounded(max_params=baseline).require_baseline()
        with pytest.raises(UsageError) as refused:
            bounded(max_params=baseline - 1).require_baseline()
        said = str(refused.value)
        assert said.startswith(f"--max-params: {baseline - 1} excludes the baseline, which has ")
        assert f", and all of the space, whose smallest model has {baseline:,} par" in said
        assert said.endswith(f"; accepted: {baseline} or more")

    def test_a_baseline_that_is_not_the_smallest(self, specification: Specification) -> None:
        wide = replace(
            specification,
            model=specification.model.replace(embed_dim=32),
            space=SPACE,
            limits=Limits(max_params=PARAMS - 5_000),
        )
        with pytest.raises(UsageError) as refused:
            Bounds(wide).require_baseline()
        needed = num_params(wide.model)
        assert str(refused.value) == (
            f"--max-params: 10000 excludes the baseline, which has {needed:,} parameters; "
            f"accepted: {needed} or more"
        )

    def test_a_space_with_very_many_corners(
        self, specification: Specification, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The smallest model is one of 244 million corners."""
        monkeypatch.setattr(spaces, "MOST_CORNERS", 1_000)
        large = replace(specification, model=convnet(3, 3), space=MANY)
        smallest, needed = num_params(convnet(2, 2)), num_params(convnet(3, 3))
        for limit, others in (
            (smallest, ""),
            (
                smallest - 1,
                ", and all that was looked at of the space, the smallest model of which has "
                f"{smallest:,} parameters",
            ),
        ):
            with pytest.raises(UsageError) as refused:
                Bounds(replace(large, limits=Limits(max_params=limit))).require_baseline()
            assert str(refused.value) == (
                f"--max-params: {limit} excludes the baseline, which has {needed:,} parameters"
                f"{others}; accepted: {needed} or more"
            )

    def test_the_seconds_that_would_be_accepted_are_accepted(self, bounded: Any) -> None:
        judge = judge_of(SLOW_BLOCKS, Images(train=200, val=1))
        with pytest.raises(UsageError) as refused:
            bounded(max_epoch_seconds=1.0, judge=judge).require_baseline()
        accepted = float(str(refused.value).split("accepted: ")[1].split()[0])
        bounded(max_epoch_seconds=accepted, judge=judge).require_baseline()


class TestProposals:
    @pytest.mark.parametrize(
        "sampler", ["tpe", "random", "cmaes", "qmc", pytest.param("gp", marks=pytest.mark.slow)]
    )
    def test_none_breaks_a_limit(self, quick: MakeSweep, sampler: str) -> None:
        trials = 13
        limited = quick(trials, sampler=sampler, limits=Limits(max_params=PARAMS)).run()
        found = params_of(limited.trials, limited.opened.specification)
        assert limited.states == ["COMPLETE"] * trials
        assert max(found) <= PARAMS

    def test_without_the_limit_it_would_be_broken(self, quick: MakeSweep) -> None:
        free = quick(8, sampler="random").run()
        assert max(params_of(free.trials, free.opened.specification)) > PARAMS

    @pytest.mark.parametrize("sampler", ["tpe", "qmc"])
    def test_they_can_be_replayed(
        self, quick: MakeSweep, sampler: str, tmp_path: Path, open_file: Any
    ) -> None:
        runs = [
            quick(
                13,
                within=open_file(tmp_path / f"{copy}.db"),
                sampler=sampler,
                limits=Limits(max_params=PARAMS),
            ).run()
            for copy in range(2)
        ]
        assert [t.params for t in runs[0].trials] == [t.params for t in runs[1].trials]
        assert len({json.dumps(t.params) for t in runs[0].trials}) == 13

    def test_a_limit_that_nothing_breaks_changes_nothing(self, quick: MakeSweep) -> None:
        free = quick(12, name="free").run()
        wide = quick(12, name="wide", limits=Limits(max_params=10**9, max_flops=10**12)).run()
        assert [t.params for t in free.trials] == [t.params for t in wide.trials]

    def test_where_hardly_anything_is_allowed_that_is_found(
        self, quick: MakeSweep, specification: Specification
    ) -> None:
        """One point in some ten thousands, which no sampler finds."""
        space = {**SPACE, "mlp_ratio": FloatDistribution(1.0, 100.0)}
        model = specification.model.replace(mlp_ratio=1.0)
        limits = Limits(max_params=num_params(model))
        done = quick(4, space=space, model=model, limits=limits, sampler="random").run()
        assert done.states == ["COMPLETE"] * 4
        assert {t.params["mlp_ratio"] for t in done.trials} == {1.0}

    def test_skip_exhausts_what_is_allowed(self, quick: MakeSweep) -> None:
        limits = Limits(max_params=PARAMS)
        done = quick(20, space=FINITE, duplicates="skip", limits=limits, sampler="random").run()
        found = {json.dumps(t.params) for t in done.trials}
        spec = done.opened.specification
        points = [{"embed_dim": w, "depth": d} for w in (8, 16, 32, 64) for d in range(1, 7)]
        assert len(found) == sum(Bounds(spec).allow(point) for point in points) < 20
        assert max(params_of(done.trials, spec)) <= PARAMS
        (note,) = done.heard.notes
        assert note.startswith("all points of the space within its limits have been tried: trial")

    def test_skip_finds_the_few_that_a_large_space_allows(
        self,
        quick: MakeSweep,
        specification: Specification,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Five points among 120,600, and nothing is repeated without a word."""
        monkeypatch.setattr(grid, "MOST_STEPS", 2_000)
        space = {
            "drop": CategoricalDistribution([0.0, 0.1, 0.2, 0.3, 0.4]),
            "embed_dim": CategoricalDistribution([64, 8]),
            "mlp_ratio": FloatDistribution(1.0, 101.0, step=0.5),
            "depth": IntDistribution(1, 60),
        }
        model = specification.model.replace(mlp_ratio=1.0)
        limits = Limits(max_params=num_params(model))
        settings = {"space": space, "model": model, "limits": limits, "sampler": "random"}
        done = quick(5, duplicates="skip", **settings).run()
        assert len({t.params["drop"] for t in done.trials}) == 5
        assert done.heard.notes == []
        more = quick(7, duplicates="skip", **settings).run()
        assert more.states == ["COMPLETE"] * 7
        (note,) = more.heard.notes
        assert note.startswith("no untried point of the space was found within its limits, though")
        assert "trial 5, and maybe later ones, replicate earlier trials" in note

    def test_skip_repeats_nothing_of_a_continuous_space_without_a_word(
        self, quick: MakeSweep, specification: Specification
    ) -> None:
        space = {
            "drop": CategoricalDistribution([0.0, 0.1]),
            "mlp_ratio": FloatDistribution(1.0, 100_000.0),
            "depth": IntDistribution(1, 60),
        }
        model = specification.model.replace(mlp_ratio=1.0)
        limits = Limits(max_params=num_params(model))
        settings = {"space": space, "model": model, "limits": limits, "sampler": "random"}
        done = quick(2, duplicates="skip", **settings).run()
        assert len({t.params["drop"] for t in done.trials}) == 2
        more = quick(3, duplicates="skip", **settings).run()
        assert len(more.heard.notes) == 1
        assert more.heard.notes[0].startswith("no untried point of the space was found within")


class TestEnqueued:
    def test_a_point_that_breaks_a_limit_is_refused_with_the_reason(
        self, quick: MakeSweep
    ) -> None:
        made = quick(3, limits=Limits(max_params=PARAMS))
        made.opened.study.enqueue_trial({"embed_dim": 64, "depth": 6, "drop": 0.0})
        made.opened.slots.set_budget(3)
        made.run()
        (failed,) = [t for t in made.trials if "ended" in t.user_attrs and t.value is None]
        assert failed.state == TrialState.FAIL
        assert failed.user_attrs["ended"].startswith(
            f"failed: UsageError: the enqueued point breaks --max-params {PARAMS}: it has 3"
        )
        assert made.states.count("COMPLETE") == 3

    def test_a_part_of_a_point_is_completed_within_the_limits(self, quick: MakeSweep) -> None:
        made = quick(2, limits=Limits(max_params=PARAMS))
        made.opened.study.enqueue_trial({"embed_dim": 16})
        made.opened.slots.set_budget(2)
        made.run()
        done = [t for t in made.trials if t.state == TrialState.COMPLETE]
        assert [t.params["embed_dim"] for t in done] == [8, 16]
        assert max(params_of(done, made.opened.specification)) <= PARAMS

    def test_a_part_is_completed_where_one_point_of_millions_does(
        self, quick: MakeSweep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spaces, "MOST_CORNERS", 1_000)
        least = convnet(2, 2)
        wanted = least.replace(widths=(2, 2, 2, 2, 2, 3))
        limits = Limits(max_params=num_params(wanted))
        baseline = least.replace(depths=(3, 2, 2, 2, 2, 2))
        made = quick(2, space=MANY, model=baseline, limits=limits, sampler="random")
        assert Bounds(made.opened.specification).allow(made.opened.specification.baseline())
        made.opened.study.enqueue_trial({"widths.5": 3})
        made.opened.slots.set_budget(2)
        made.run()
        first, second = (t for t in made.trials if t.state == TrialState.COMPLETE)
        assert first.params == made.opened.specification.baseline()
        model, _ = trained_as(made.opened.specification, second)
        assert model == wanted

    def test_a_part_that_cannot_be_completed_is_refused(self, quick: MakeSweep) -> None:
        made = quick(4, limits=Limits(max_params=PARAMS))
        for _ in range(3):
            made.opened.study.enqueue_trial({"embed_dim": 64})
        made.opened.slots.set_budget(4)
        with pytest.raises(SweepFailed, match="what is enqueued of the point leaves none within"):
            made.run()


class TestTheStudy:
    def test_it_keeps_who_judged(self, quick: MakeSweep, storage: Any) -> None:
        judge = judge_of(SLOW_BLOCKS, Images(200, 130))
        made = quick(2, limits=Limits(max_epoch_seconds=9.0, judge=judge))
        assert join_study(storage, "study").specification.limits.judge == judge
        assert specification_of(made.opened.study) == made.opened.specification
        # Another machine may be slower; it judges as the one that began the study.
        slower = replace(SLOW_BLOCKS, step={"blocks": 50.0})
        again = quick(
            2, limits=Limits(max_epoch_seconds=9.0, judge=judge_of(slower, Images(200, 130)))
        )
        assert again.opened.specification.limits.judge == judge

    def test_another_limit_is_another_study(self, quick: MakeSweep) -> None:
        quick(1, limits=Limits(max_params=PARAMS))
        with pytest.raises(SpecificationMismatch, match="--max-params was 15000, now not given"):
            quick(1)
        with pytest.raises(SpecificationMismatch, match="--max-flops was not given, now 10000"):
            quick(1, limits=Limits(max_params=PARAMS, max_flops=10_000))
