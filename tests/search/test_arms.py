"""Studies of arms: given configurations, each with the same seeds, however often interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from proposing import proposal_for
from visweep.config import ConvNetConfig, DataConfig, TrainConfig, ViTConfig
from visweep.data.resident import ResidentData
from visweep.errors import SpecificationMismatch, UsageError
from visweep.search.arms import Ablation, arms_specification
from visweep.search.duplicates import _Proposer
from visweep.search.interrupt import Interrupt
from visweep.search.study import OpenStudy, join_study, open_study
from visweep.search.trainer import SharedTrainer
from visweep.search.worker import Worker
from visweep.storage.engine import Storage
from visweep.storage.owner import this_process
from visweep.storage.replicates import seeds_of
from visweep.storage.slots import Slots
from visweep.storage.specification import Arm, Specification, difference

VIT = ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=2)
TRAIN = TrainConfig(epochs=2, precision="float32")
FIRST_SEED = 7
TABLE = Ablation(
    name="table",
    image_size=32,
    baselines={"vit": VIT, "convnet": ConvNetConfig(widths=(4,), depths=(1,))},
    changes={"vit": [{"depth": 2}, {"num_heads": 1, "drop": 0.2}, {"lr": 1e-3}]},
    train=TRAIN,
)
NAMES = ["vit", "vit: depth=2", "vit: num_heads=1 drop=0.2", "vit: lr=0.001", "convnet"]


def specified(images: ResidentData, **changes: Any) -> Specification:
    made = arms_specification(
        TABLE.arms(TRAIN, images.dataset.model_fields),
        first_seed=FIRST_SEED,
        data=DataConfig(train_size=200),
        fingerprint=images.dataset.fingerprint,
        precision="float32",
    )
    return replace(made, **changes)


def opened(
    storage: Storage, images: ResidentData, seeds: int, name: str = "study", **changes: Any
) -> OpenStudy:
    return open_study(storage, name, specified(images, **changes), len(NAMES) * seeds)


def work(study: OpenStudy, images: ResidentData, heard: Any, interrupt: Any = None) -> None:
    Worker(study, SharedTrainer(images), heard, interrupt or Interrupt()).run()


class TestStatement:
    def test_each_change_is_an_arm_of_its_baseline(self) -> None:
        arms = TABLE.arms(TRAIN, {"image_size": 32, "in_chans": 3})
        assert list(arms) == NAMES
        assert [arm.against for arm in arms.values()] == [None, "vit", "vit", "vit", None]
        assert arms["vit: depth=2"].model == VIT.replace(depth=2, in_chans=3)
        assert arms["vit: lr=0.001"].model == VIT.replace(in_chans=3)
        assert arms["vit: lr=0.001"].train == TRAIN.replace(lr=1e-3)

    def test_an_invalid_change_is_refused_by_name(self) -> None:
        wrong = replace(TABLE, changes={"vit": [{"num_heads": 3}]})
        with pytest.raises(UsageError, match=r"^vit: num_heads=3: embed_dim: 8 is not a multiple"):
            wrong.arms(TRAIN, {})
        unknown = replace(TABLE, changes={"vit": [{"heads": 3}]})
        with pytest.raises(UsageError, match="num_heads"):
            unknown.arms(TRAIN, {})

    def test_changes_of_one_name_are_refused(self) -> None:
        alike = replace(TABLE, changes={"vit": [{"lr": 0.0012341}, {"lr": 0.0012342}]})
        with pytest.raises(UsageError, match=r"^vit: lr=0.00123: two changes are called so"):
            alike.arms(TRAIN, {})

    def test_images_that_a_baseline_cannot_take_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"^--image-size: vit cannot take such images"):
            TABLE.arms(TRAIN, {"image_size": 24})


class TestSpecification:
    def test_it_is_stored_and_read(self, images: ResidentData) -> None:
        before = specified(images)
        text = json.dumps(before.stored())
        after = Specification.from_stored(json.loads(text))
        assert after == replace(before, data=after.data)
        assert list(after.arms) == NAMES
        assert difference(before.identity(), after.identity(), "was", "now") is None

    def test_another_arm_is_another_study(self, images: ResidentData, storage: Storage) -> None:
        opened(storage, images, 1)
        arms = dict(specified(images).arms)
        arms["vit"] = Arm(model=VIT.replace(depth=3), train=TRAIN)
        with pytest.raises(SpecificationMismatch, match=r"arms\.vit\.model\.depth was 1, now 3"):
            opened(storage, images, 1, arms=arms)

    def test_a_trial_is_an_arm_with_a_seed(self, images: ResidentData) -> None:
        model, train = specified(images).configurations({"arm": "vit: lr=0.001", "seed": 9})
        assert (model.embed_dim, train.lr, train.seeds) == (8, 1e-3, (9,))  # type: ignore[union-attr]
        with pytest.raises(UsageError, match="vit: depth=2"):
            specified(images).configurations({"arm": "vit: depth=3", "seed": 9})

    def test_images_have_a_border_for_the_farthest_translation(
        self, images: ResidentData, specification: Specification
    ) -> None:
        arms = dict(specified(images).arms)
        arms["vit: translate=5"] = Arm(model=VIT, train=TRAIN.replace(translate=5))
        assert specified(images, arms=arms).most_translation == 5
        assert specification.most_translation == 2
        for searched in (IntDistribution(0, 4), CategoricalDistribution([1, 4])):
            space = {**specification.space, "translate": searched}
            assert replace(specification, space=space).most_translation == 4

    def test_studies_without_arms_are_stored_as_before(self, specification: Specification) -> None:
        assert "arms" not in specification.identity()
        assert specification.configurations({"depth": 2})[0].depth == 2  # type: ignore[union-attr]


class TestTraining:
    def test_every_arm_has_every_seed_once(
        self, images: ResidentData, storage: Storage, sweep: Callable[..., Any]
    ) -> None:
        study, heard = opened(storage, images, 2), sweep(1, name="other").heard
        work(study, images, heard)
        pairs = [(t.params["arm"], t.params["seed"]) for t in study.trials()]
        seeds = (FIRST_SEED, FIRST_SEED + 1)
        assert pairs == [(name, seed) for seed in seeds for name in NAMES]
        assert {t.state for t in study.trials()} == {TrialState.COMPLETE}

    def test_each_trial_says_what_it_changes(
        self, images: ResidentData, storage: Storage, sweep: Callable[..., Any]
    ) -> None:
        study = opened(storage, images, 1)
        work(study, images, sweep(1, name="other").heard)
        said = [(t.user_attrs.get("against"), t.user_attrs.get("change")) for t in study.trials()]
        assert said == [
            (None, None),
            ("vit", {"depth": [1, 2]}),
            ("vit", {"num_heads": [2, 1], "drop": [0.0, 0.2]}),
            ("vit", {"lr": [2e-3, 1e-3]}),
            (None, None),
        ]

    def test_a_point_that_another_worker_begins_meanwhile_is_left_to_it(
        self, images: ResidentData, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = opened(storage, images, 1)
        slots, space = study.slots, study.specification.space
        other = Slots(storage, study.study_id, this_process(1))
        first = slots.take()
        assert first is not None
        assert slots.begin(first, study.specification.baseline(), space)
        taken: list[Any] = []
        untried = _Proposer._untried

        def meanwhile(self: Any, start: int) -> Any:
            found = untried(self, start)
            if not taken:
                taken.append(found)
                lease = other.take()
                assert lease is not None
                assert other.begin(lease, found, space)
            return found

        monkeypatch.setattr(_Proposer, "_untried", meanwhile)
        mine = replace(study, slots=Slots(storage, study.study_id, this_process(2)))
        second = mine.slots.take()
        assert second is not None
        proposed = proposal_for(mine, second)
        assert taken[0]["arm"] == NAMES[1]
        assert proposed.parameters == {"arm": NAMES[2], "seed": FIRST_SEED}
        assert proposed.attributes == {}

    @pytest.mark.parametrize("enqueued", [None, {"arm": "of no table", "seed": FIRST_SEED}])
    def test_a_point_that_is_enqueued_is_left_to_its_trial(
        self, images: ResidentData, storage: Storage, enqueued: dict[str, Any] | None
    ) -> None:
        """The first one is: whoever has it may be slower to begin than who takes the second."""
        study = opened(storage, images, 1)
        if enqueued:
            study.study.enqueue_trial(enqueued)
        mine = replace(study, slots=Slots(storage, study.study_id, this_process(1)))
        first, second = study.slots.take(), mine.slots.take()
        assert first is not None
        assert second is not None
        later = proposal_for(mine, second)
        assert later.parameters == {"arm": NAMES[1], "seed": FIRST_SEED}
        assert mine.slots.begin(second, later.parameters, study.specification.space)
        sooner = proposal_for(study, first)
        assert sooner.parameters == {"arm": NAMES[0], "seed": FIRST_SEED}
        assert sooner.attributes == {}

    def test_a_replicate_does_not_stand_for_the_run_itself(
        self, images: ResidentData, storage: Storage, sweep: Callable[..., Any]
    ) -> None:
        """Somebody enqueues the first point again; then the point itself is still to be run."""
        study = opened(storage, images, 1)
        study.study.enqueue_trial({"arm": "vit", "seed": FIRST_SEED})
        work(study, images, sweep(1, name="other").heard)
        own = [t.params["arm"] for t in study.trials() if not seeds_of(t)]
        assert sorted(own) == sorted(NAMES[: len(own)])
        assert len(own) == len(NAMES) - 1, "the enqueued one took a slot"

    def test_it_equals_the_arm_trained_alone(
        self, images: ResidentData, storage: Storage, sweep: Callable[..., Any]
    ) -> None:
        from visweep.training.fit import fit

        study, heard = opened(storage, images, 1), sweep(1, name="other").heard
        work(study, images, heard)
        for trial in study.trials():
            model, train = study.specification.configurations(trial.params)
            alone = fit(model, train, images)
            assert trial.value == alone.history[-1].mean_val_accuracy

    def test_more_seeds_are_added(
        self, images: ResidentData, storage: Storage, sweep: Callable[..., Any]
    ) -> None:
        heard = sweep(1, name="other").heard
        work(opened(storage, images, 1), images, heard)
        study = opened(storage, images, 2)
        work(study, images, heard)
        assert len(study.trials()) == 2 * len(NAMES)
        assert len({(t.params["arm"], t.params["seed"]) for t in study.trials()}) == 10

    def test_an_interrupted_one_goes_on(
        self, images: ResidentData, storage: Storage, sweep: Callable[..., Any]
    ) -> None:
        heard = sweep(1, name="other").heard
        interrupt = Interrupt()
        heard.on_epoch = lambda trial: interrupt.ask("a test") if trial.number == 2 else None
        study = opened(storage, images, 1)
        work(study, images, heard, interrupt)
        states = [t.state.name for t in study.trials()]
        assert states == ["COMPLETE", "COMPLETE", "RUNNING", "WAITING", "WAITING"]
        work(join_study(storage, "study"), images, sweep(1, name="third").heard)
        assert [t.params["arm"] for t in study.trials()] == NAMES
        assert {t.state for t in study.trials()} == {TrialState.COMPLETE}

    def test_what_failed_is_run_again(
        self, images: ResidentData, storage: Storage, sweep: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        failures = iter([True])
        fit = SharedTrainer.fit

        def failing(self: Any, model: Any, train: Any, **how: Any) -> Any:
            if model.kind == "vit" and model.depth == 2 and next(failures, False):
                raise RuntimeError("once")
            return fit(self, model, train, **how)

        monkeypatch.setattr(SharedTrainer, "fit", failing)
        study = opened(storage, images, 1)
        work(study, images, sweep(1, name="other").heard)
        ended = [(t.params["arm"], t.state.name) for t in study.trials()]
        assert ended.count(("vit: depth=2", "FAIL")) == 1
        assert ended.count(("vit: depth=2", "COMPLETE")) == 1
        assert len(ended) == len(NAMES) + 1

    def test_the_best_of_each_baseline_keeps_its_weights(
        self, images: ResidentData, storage: Storage, file: Path, sweep: Callable[..., Any]
    ) -> None:
        study = opened(storage, images, 3)
        work(study, images, sweep(1, name="other").heard)
        kept = {number for number, _, _ in study.checkpoints.all()}
        for name in ("vit", "convnet"):
            own = [t for t in study.trials() if t.params["arm"] == name]
            best = max(own, key=lambda t: t.value or 0.0)
            assert best.number in kept
