"""`visweep race`: the leaders of a study over new seeds, to a winner or a tie, and then the test
images, once."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from PIL import Image

from proposing import proposal_for
from visweep.analysis.race import Raced, read_race
from visweep.analysis.statistics.racing import Outcome
from visweep.cli.search import quietly_opened
from visweep.search.study import join_study
from visweep.storage.specification import (
    BUDGET,
    DROPPED,
    OF,
    RACE,
    STUDY_ID,
    TEST,
    Specification,
)

SCRIPT = '''\
"""A search whose configurations differ: those that learn nothing are far behind."""

from optuna.distributions import CategoricalDistribution as Choice

from visweep import Recipe, TrainConfig, ViTConfig, run

SEARCH = Recipe(
    name="greys",
    baseline=ViTConfig(patch_size=4, embed_dim=16, depth=1, num_heads=2),
    spaces={"lr": lambda size: {"lr": Choice([1e-2, 1e-7, 2e-7, 3e-7])}},
    train=TrainConfig(epochs=2, batch_size=8, lr=1e-2, precision="float32"),
)

if __name__ == "__main__":
    run(SEARCH)
'''


def make_greys(folder: Path, **parts: int) -> None:
    """Noise of 8×8 pixels, mostly darker or mostly brighter; so many of each class."""
    rng = np.random.default_rng(0)
    for part, count in parts.items():
        for number in range(count):
            for name, level in (("dark", 60), ("bright", 100)):
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                pixels = level + 20 * rng.standard_normal() + rng.integers(0, 80, (8, 8))
                grey = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                grey.save(folder / part / name / f"{number}.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("greys")
    make_greys(folder, train=40, val=40, test=60)
    return folder


@pytest.fixture(scope="session")
def searched(_launcher: Any, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a search of four configurations, called `greys`; to be copied."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "greys.py").write_text(SCRIPT)
    process = _launcher.run(
        folder / "greys.py", "--trials", 4, "--duplicates", "skip", "--pruner", "none",
        "--dataset", "imagefolder", "--data-dir", images, "--image-size", 8, "--workers", 1,
        "--study", "greys", "--storage", f"sqlite:///{folder}/studies.db",
    )  # fmt: skip
    assert (process.status, process.stderr) == (0, "")
    return folder


@dataclass
class Races:
    """Races in one folder."""

    launcher: Any
    folder: Path

    @property
    def storage(self) -> tuple[str, str]:
        return "--storage", f"sqlite:///{self.folder}/studies.db"

    def start(self, *given: object, study: str = "greys", workers: int = 1) -> Any:
        options = ("--workers", workers, *given, *self.storage)
        return self.launcher.start("visweep", "race", study, *options, cwd=self.folder)

    def run(self, *given: object, **how: Any) -> Any:
        process = self.start(*given, **how).wait()
        assert (process.status, process.stderr) == (0, ""), process.stderr
        return process

    def study(self, name: str = "greys-race") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=self.storage[1])

    def trials(self) -> list[FrozenTrial]:
        return self.study().get_trials(deepcopy=False)

    def raced(self) -> Raced:
        study = self.study()
        specification = Specification.from_stored(study.user_attrs["visweep:specification"])
        return read_race(study.user_attrs, specification, study.get_trials(deepcopy=False))

    def values(self) -> dict[tuple[str, int], float | None]:
        """By arm and seed, whatever ended."""
        ended = [t for t in self.trials() if t.state.is_finished()]
        return {(t.params["arm"], t.params["seed"]): t.value for t in ended}

    def weights(self) -> set[int]:
        found = self.folder.glob("artifacts/greys-race-*/trial-*.ckpt")
        return {int(path.name.split("-")[1].split(".")[0]) for path in found}


@pytest.fixture
def races(launcher: Any, searched: Path, tmp_path: Path) -> Callable[..., Races]:
    """Makes copies of the search to race in."""

    def make(name: str = "one") -> Races:
        shutil.copytree(searched, tmp_path / name)
        return Races(launcher, tmp_path / name)

    return make


@pytest.fixture(scope="session")
def decided(_launcher: Any, searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Races:
    """A race of three that ran undisturbed; to be looked at."""
    folder = tmp_path_factory.mktemp("decided") / "copy"
    shutil.copytree(searched, folder)
    found = Races(_launcher, folder)
    process = found.run("--top", 3, "--seeds", "3..10")
    (folder / "printed").write_text(process.stdout)
    return found


class TestARace:
    def test_the_one_that_learns_wins(self, decided: Races) -> None:
        raced = decided.raced()
        assert raced.race.outcome is Outcome.WINNER
        assert raced.race.winner == raced.chosen == "trial 0"
        source = decided.study("greys").user_attrs[STUDY_ID]
        assert decided.study().user_attrs[OF] == {"study": "greys", "kind": "race", "id": source}

    def test_the_seeds_are_none_that_the_search_chose_by(self, decided: Races) -> None:
        assert decided.raced().seeds == tuple(range(1, 11))
        searched = decided.study("greys")
        assert searched.user_attrs["visweep:specification"]["identity"]["train"]["seeds"] == [0]

    def test_the_arms_are_the_best_of_the_search(self, decided: Races) -> None:
        trials = decided.study("greys").get_trials(deepcopy=False)
        best = sorted(trials, key=lambda t: (-(t.value or 0), t.number))[:3]
        raced = decided.raced()
        assert list(raced.arms) == [f"trial {t.number}" for t in best]
        assert [each.accuracy for each in raced.arms.values()] == [t.value for t in best]
        assert raced.among == 4

    def test_who_is_dropped_is_trained_no_more(self, decided: Races) -> None:
        raced = decided.raced()
        runs = Counter(arm for arm, _ in decided.values())
        for look in raced.race.looks:
            for drop in look.dropped:
                assert runs[drop.arm] == look.seeds
        assert runs["trial 0"] == raced.race.looks[-1].seeds
        assert all(t.state == TrialState.COMPLETE for t in decided.trials())
        assert sum(runs.values()) == len(decided.trials()) < 3 * 10

    def test_each_look_is_told_in_a_line(self, decided: Races) -> None:
        lines = (decided.folder / "printed").read_text().splitlines()
        told = [line for line in lines if line.startswith("look at")]
        raced = decided.raced()
        assert [int(line.split()[2]) for line in told] == [look.seeds for look in raced.race.looks]
        dropped = [line for line in told if "is dropped (−" in line]
        assert dropped
        assert all(" ≤ " in line for line in dropped)

    def test_the_test_images_are_looked_at_once(self, decided: Races) -> None:
        test = decided.raced().test
        assert test is not None
        assert (test.arm, test.images, test.groups) == ("trial 0", 120, 120)
        assert test.low is not None
        assert test.high is not None
        assert test.low < test.accuracy < test.high
        assert test.seeds == tuple(decided.raced().seeds[: len(test.seeds)])
        assert len(test.seeds) == decided.raced().race.looks[-1].seeds
        stored = decided.study().user_attrs[TEST]
        assert test.accuracy == pytest.approx(np.mean(stored["by_seed"]))
        before = decided.study().user_attrs
        again = decided.run()
        assert decided.study().user_attrs == before
        assert f"test: {100 * test.accuracy:.1f} %" in again.stdout

    def test_all_three_numbers_are_told(self, decided: Races) -> None:
        told = (decided.folder / "printed").read_text()
        raced = decided.raced()
        assert raced.test is not None
        mean = raced.mean("trial 0")
        assert mean is not None
        for what, number in {
            "validation, in the search": raced.arms["trial 0"].accuracy,
            "validation, in the race": mean.accuracy,
            "test": raced.test.accuracy,
        }.items():
            assert f"trial 0, {what}: {100 * number:.1f} %" in told

    def test_afterwards_only_the_best_weights_stay(self, decided: Races) -> None:
        best = max(decided.trials(), key=lambda t: t.value or 0)
        own = [t for t in decided.trials() if t.params["arm"] == "trial 0"]
        assert decided.weights() == {max(own, key=lambda t: t.value or 0).number}
        assert best.params["arm"] == "trial 0"


class TestGoingOn:
    @pytest.mark.slow
    def test_killed_again_and_again_it_decides_the_same(
        self, races: Any, decided: Races, wait_for: Any
    ) -> None:
        here = races()
        kills = 0
        for ended in (1, 4, 8, 10):
            process = here.start("--top", 3, "--seeds", "3..10")

            def far_enough(process: Any = process, ended: int = ended) -> bool:
                return process.ended() or (
                    "greys-race" in optuna.get_all_study_names(here.storage[1])
                    and len(here.values()) >= ended
                )

            wait_for(far_enough)
            kills += process.status is None
            process.kill()
        assert kills >= 2
        here.run()
        assert here.values() == decided.values()
        assert here.raced().race == decided.raced().race
        assert here.raced().test == decided.raced().test

    @pytest.mark.slow
    def test_two_workers_train_the_same(self, races: Any, decided: Races) -> None:
        """Two looks are enough to see that they go on from one to the next together."""
        here = races()
        here.run("--top", 3, "--seeds", "2..3", workers=2)
        alone = decided.values()
        assert here.values() == {key: alone[key] for key in alone if key[1] <= 3}
        assert [look.seeds for look in here.raced().race.looks] == [2, 3]

    @pytest.mark.slow
    def test_two_commands_at_once_share_one_race(self, races: Any, decided: Races) -> None:
        here = races()
        both = [here.start("--top", 3, "--seeds", "3..10") for _ in range(2)]
        for process in both:
            process.wait()
            assert process.status == 0, process.stderr
        assert here.values() == decided.values()
        assert len(here.trials()) == len(decided.trials())
        assert here.raced().test == decided.raced().test

    @pytest.mark.slow
    def test_moved_and_renamed_it_goes_on(
        self, races: Any, decided: Races, wait_for: Any, tmp_path: Path
    ) -> None:
        """Begun anew, it would look at the test images once more."""
        here = races()
        process = here.start("--top", 3, "--seeds", "3..10")
        wait_for(lambda: "[1/9]" in process.stdout)
        process.signal(signal.SIGINT)
        process.wait()
        there = Races(here.launcher, tmp_path / "there")
        there.folder.mkdir()
        for name, new in (("greys", "day"), ("greys-race", "of the greys")):
            for command in (
                ("pack", name, "-o", here.folder / "moved", *here.storage),
                ("unpack", here.folder / "moved", "--study", new, *there.storage),
            ):
                done = there.launcher.run("visweep", *command)
                assert (done.status, done.stderr) == (0, "")
            (here.folder / "moved").unlink()
        refused = there.start(study="of the greys").wait().refusal()
        assert refused.endswith("go on with it: visweep race day")
        on = there.launcher.run(
            "visweep", "resume", "of the greys", "--workers", 1, *there.storage
        )
        assert (on.status, on.stderr) == (0, "")
        again = f"visweep race day {' '.join(there.storage)}"
        assert f"the test images are looked at, once, by: {again}" in on.stdout
        told = there.run(study="day").stdout
        assert "the test images are looked at" not in told
        going_on = "going on with of the greys, which was made of day when that was called greys"
        assert told.startswith(going_on)
        assert set(optuna.get_all_study_names(there.storage[1])) == {"day", "of the greys"}
        attributes = there.study("of the greys").user_attrs
        assert attributes[TEST]["by_seed"] == decided.study().user_attrs[TEST]["by_seed"]

    @pytest.mark.slow
    def test_ctrl_c_says_how_to_go_on(self, races: Any, decided: Races, wait_for: Any) -> None:
        here = races()
        process = here.start("--top", 3, "--seeds", "3..10")
        wait_for(lambda: "[1/9]" in process.stdout)
        process.signal(signal.SIGINT)
        process.wait()
        assert process.status == 130
        assert "resume: visweep race greys" in process.stdout
        assert TEST not in here.study().user_attrs
        # Another command goes on with it, and decides, but leaves the test images alone.
        on = here.launcher.run("visweep", "resume", "greys-race", "--workers", 1, *here.storage)
        assert (on.status, on.stderr) == (0, "")
        assert here.raced().race == decided.raced().race
        assert TEST not in here.study().user_attrs
        assert len(here.weights()) >= len(here.raced().seeds_of("trial 0"))
        here.run()
        assert here.raced().test == decided.raced().test

    def test_a_tie_takes_the_highest_mean(self, races: Any) -> None:
        """Two seeds and one look cannot tell even these apart."""
        here = races()
        told = here.run("--top", 2, "--seeds", "2..2").stdout
        assert "the test images are looked at" not in told, "it looks itself"
        raced = here.raced()
        assert raced.race.outcome is Outcome.TIE
        assert raced.chosen == "trial 0"
        assert "A tie: 2 seeds do not tell" in told
        assert raced.test is not None
        assert raced.test.arm == "trial 0"

    def test_who_looks_at_the_test_images_is_said_where_its_study_is_there(
        self, decided: Races, tmp_path: Path
    ) -> None:
        shutil.copytree(decided.folder, tmp_path / "copy")
        here = Races(decided.launcher, tmp_path / "copy")
        here.study().set_user_attr(TEST, {})
        on = ("visweep", "resume", "greys-race", "--workers", 1, *here.storage)
        said = f"looked at, once, by: visweep race greys {' '.join(here.storage)}\n"
        assert said in here.launcher.run(*on).stdout
        optuna.delete_study(study_name="greys", storage=here.storage[1])
        alone = here.launcher.run(*on)
        assert (alone.status, alone.stderr) == (0, "")
        assert "trial 0 wins" in alone.stdout
        assert "looked at, once" not in alone.stdout

    def test_room_is_only_for_who_is_left(self, decided: Races, tmp_path: Path) -> None:
        """As when a run of the winner had failed: a slot more, which no dropped arm takes."""
        shutil.copytree(decided.folder, tmp_path / "copy")
        here = Races(decided.launcher, tmp_path / "copy")
        study = here.study()
        assert set(study.user_attrs[DROPPED]) == {"trial 1", "trial 2"}
        study.set_user_attr(BUDGET, study.user_attrs[BUDGET] + 1)
        with quietly_opened(here.storage[1], must_exist=True) as storage:
            opened = join_study(storage, "greys-race")
            opened.make_room()
            lease = opened.slots.take()
            assert lease is not None
            looks = here.raced().race.looks[-1].seeds
            expected = {"arm": "trial 0", "seed": looks + 1}
            assert proposal_for(opened, lease).parameters == expected


WATCHED = '''\
"""visweep, which tells at its end what it got ready, and how often."""

from visweep.cli import main, search
from visweep.search import crew, making

found = {"workers": 0, "images": 0, "trainer": 0}


class Maker(making.TrainerMaker):
    def __call__(self):
        found["trainer"] += 1
        return super().__call__()


def counted(name, function):
    def call(*given):
        found[name] += 1
        return function(*given)

    return call


if __name__ == "__main__":
    crew._start = counted("workers", crew._start)
    search.shared = counted("images", search.shared)
    search.TrainerMaker = Maker
    search.note_of_others = lambda trials: "trained elsewhere, too"
    try:
        main()
    finally:
        print(found)
'''


class TestLookByLook:
    @pytest.mark.parametrize(
        ("workers", "ready"),
        [
            (1, {"workers": 0, "images": 0, "trainer": 1}),
            pytest.param(2, {"workers": 2, "images": 1, "trainer": 0}, marks=pytest.mark.slow),
        ],
    )
    def test_what_it_takes_is_got_ready_and_said_once(
        self, races: Any, workers: int, ready: dict[str, int]
    ) -> None:
        here = races()
        script = here.folder / "watched.py"
        script.write_text(WATCHED)
        options = ("--top", 3, "--seeds", "2..4", "--workers", workers, *here.storage)
        process = here.launcher.run(script, "race", "greys", *options)
        assert (process.status, process.stderr) == (0, "")
        assert len(here.raced().race.looks) > 1
        lines = process.stdout.splitlines()
        assert str(ready) in lines
        assert lines.count("trained elsewhere, too") == 1
        assert sum(line.startswith("study greys-race: ") for line in lines) == 1


class TestWithout:
    def test_test_images(
        self, launcher: Any, searched: Path, images: Path, tmp_path: Path
    ) -> None:
        """The race is decided all the same, and says why there is no number."""
        shutil.copytree(searched, tmp_path / "copy")
        for part in ("train", "val"):
            shutil.copytree(images / part, tmp_path / "images" / part)
        here = Races(launcher, tmp_path / "copy")
        data = ("--data-dir", tmp_path / "images")
        told = here.run("--top", 2, "--seeds", "2..2", *data).stdout
        assert "the test images were not looked at: --data-dir: " in told
        assert here.raced().test is None
        assert here.raced().chosen == "trial 0"

    def test_the_weights(self, races: Any, images: Path) -> None:
        here = races()
        here.start("--top", 2, "--seeds", "2..2", "--timeout", "0.01s").wait()
        here.start("--timeout", "0.01s").wait()
        on = ("resume", "greys-race", "--workers", 1, "--data-dir", images, *here.storage)
        here.launcher.run("visweep", *on)
        for path in here.folder.glob("artifacts/greys-race-*/*.ckpt"):
            path.unlink()
        process = here.start().wait()
        assert process.status == 2
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: --artifacts: the weights of trial")


class TestBadInput:
    @pytest.mark.parametrize("seeds", ["3..2", "1..5", "3", "3-20", "a..b", "3..20000", ""])
    def test_seeds(self, launcher: Any, searched: Path, snapshot: Any, seeds: str) -> None:
        before = snapshot(searched)
        here = Races(launcher, searched)
        refused = here.start("--seeds", seeds).wait().refusal()
        assert refused.startswith(f"--seeds: {seeds!r} is not accepted; accepted: A..B with")
        assert snapshot(searched) == before

    @pytest.mark.parametrize("top", [1, 0, -3])
    def test_too_few(self, launcher: Any, searched: Path, snapshot: Any, top: int) -> None:
        before = snapshot(searched)
        refused = Races(launcher, searched).start("--top", top).wait().refusal()
        assert refused == f"--top: {top} is not accepted; accepted: 2, 3, 4, …"
        assert snapshot(searched) == before

    def test_more_than_have_completed(self, launcher: Any, searched: Path, snapshot: Any) -> None:
        before = snapshot(searched)
        refused = Races(launcher, searched).start().wait().refusal()
        assert refused == (
            "--top: 5 configurations are wanted, and 4 of 'greys' have completed; accepted: 2 to 4"
        )
        assert snapshot(searched) == before

    def test_an_unknown_study(self, launcher: Any, searched: Path) -> None:
        refused = Races(launcher, searched).start(study="grey").wait().refusal()
        assert "did you mean 'greys'?" in refused

    def test_another_race_than_was_begun(self, decided: Races) -> None:
        assert "begun with 3..10" in decided.start("--seeds", "3..9").wait().refusal()
        assert "begun with 3;" in decided.start("--top", 2).wait().refusal()

    def test_the_race_of_a_study_that_was_deleted(self, decided: Races, tmp_path: Path) -> None:
        """Another search has its name by now."""
        shutil.copytree(decided.folder, tmp_path / "copy")
        here = Races(decided.launcher, tmp_path / "copy")
        here.study("greys").set_user_attr(STUDY_ID, "another")
        before = here.study().user_attrs, here.values()
        assert here.start().wait().refusal() == (
            "STUDY: 'greys-race' is there already, and this command did not make it of this "
            "'greys'; begin anew: "
            f"visweep delete greys-race --storage sqlite:///{here.folder}/studies.db"
        )
        assert (here.study().user_attrs, here.values()) == before

    @pytest.mark.parametrize(
        ("numbers", "said"),
        [
            ((0,), "which 'copy' has not completed: they are copies of different age; give this"),
            ((0, 3, 2, 1), "it is of a copy that went its own way; to race this one, begin anew:"),
        ],
    )
    def test_the_race_of_another_copy(
        self, decided: Races, tmp_path: Path, numbers: tuple[int, ...], said: str
    ) -> None:
        """One that is older, or went its own way, so that other trials have the numbers."""
        shutil.copytree(decided.folder, tmp_path / "copy")
        here = Races(decided.launcher, tmp_path / "copy")
        original = here.study("greys")
        made = optuna.create_study(
            study_name="copy", storage=original._storage, direction="maximize"
        )
        for key, value in original.user_attrs.items():
            made.set_user_attr(key, value)
        for number in numbers:
            made.add_trial(original.get_trials()[number])
        optuna.delete_study(study_name="greys", storage=original._storage)
        here.study().set_user_attr(TEST, {})
        before = here.study().user_attrs, here.values()
        process = here.start(study="copy").wait()
        assert process.status == 2
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: STUDY: 'greys-race' races trial ")
        assert said in line
        assert (here.study().user_attrs, here.values()) == before
        assert optuna.get_all_study_names(here.storage[1]) == ["greys-race", "copy"]

    def test_the_race_of_a_race(self, decided: Races) -> None:
        refused = decided.start(study="greys-race").wait().refusal()
        assert "go on with it: visweep race greys" in refused
        assert RACE in decided.study().user_attrs
