"""Studies that were made of another one are tied to it, and not to whatever has its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from arms_studies import arms_of_report
from visweep.analysis.overview import COMPANIONS, read
from visweep.analysis.pruning import POOL, SAMPLE
from visweep.analysis.report import document
from visweep.cli.ablate import Wanted as Ablated
from visweep.cli.ablate import ablate
from visweep.cli.choosing import _tested
from visweep.cli.join import Local
from visweep.cli.pruned import Wanted as Pruned
from visweep.cli.pruned import pruned
from visweep.cli.race import Wanted as Raced
from visweep.cli.race import race
from visweep.cli.studies import delete_study, made_of_it
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.errors import UsageError
from visweep.search.arms import arms_specification
from visweep.search.study import open_study
from visweep.storage.companions import companion_name, companions, source_name
from visweep.storage.engine import Storage
from visweep.storage.merge import merge
from visweep.storage.opening import open_storage
from visweep.storage.pack import pack, unpack
from visweep.storage.specification import OF, STUDY_ID, TEST, Arm, Specification, made_of
from visweep.storage.tables import studies, study_attributes, study_system_attributes

SPACE = {"depth": CategoricalDistribution([2, 4])}
SEARCH = Specification(
    space=SPACE,
    data=DataConfig(),
    fingerprint="f",
    model=ViTConfig(depth=4),
    train=TrainConfig(epochs=2, seeds=(0, 1)),
    sampler="tpe",
    pruner="none",
    seed=0,
)
MADE = arms_specification(
    arms_of_report(),
    first_seed=0,
    data=DataConfig(),
    fingerprint="f",
    precision="float32",
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    (tmp_path / "here").mkdir()
    return f"sqlite:///{tmp_path}/here/studies.db"


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    made = open_storage(url)
    yield made
    made.close()


def search(storage: Storage) -> optuna.Study:
    """A search with two trials, one of them pruned, and nothing made of it."""
    study = open_study(storage, "night", SEARCH, 2).study
    for state, depth in ((TrialState.COMPLETE, 2), (TrialState.PRUNED, 4)):
        study.add_trial(
            create_trial(
                state=state,
                value=0.5,
                params={"depth": depth},
                distributions=dict(SPACE),
                intermediate_values={1: 0.5},
                user_attrs={"provenance": {}},
            )
        )
    return study


def make_of(study: optuna.Study, storage: Storage, *kinds: str) -> None:
    for kind in kinds:
        of = made_of(study.study_name, study.user_attrs[STUDY_ID], kind)
        open_study(storage, f"{study.study_name}-{kind}", MADE, 4, attributes={OF: of})


def test_a_report_shows_what_was_made_of_this_study(storage: Storage) -> None:
    study = search(storage)
    make_of(study, storage, *COMPANIONS)
    assert list(read(study).companions) == list(COMPANIONS)
    assert made_of_it(study) == [f"night-{kind}" for kind in COMPANIONS]
    delete_study(study, storage)
    again = search(storage)
    assert read(again).companions == {}
    assert made_of_it(again) == []


@pytest.mark.parametrize("depth", [2, 4])
def test_a_test_number_is_told_only_of_the_configuration_that_was_raced(
    storage: Storage, depth: int
) -> None:
    """A copy that went on by itself elsewhere may have another trial under the same number."""
    study = search(storage)
    trial = study.trials[-2]
    raced = Arm(model=SEARCH.model.replace(depth=depth), train=SEARCH.train)
    name = f"trial {trial.number}"
    made = arms_specification(
        {name: raced}, first_seed=0, data=DataConfig(), fingerprint="f", precision="auto"
    )
    of = made_of("night", study.user_attrs[STUDY_ID], "race")
    race_study = open_study(storage, "night-race", made, 1, attributes={OF: of}).study
    result = {"arm": name, "accuracy": 0.5}
    race_study.set_user_attr(TEST, result)
    assert trial.params == {"depth": 2}
    assert _tested(study, study.trials) == (result if depth == 2 else {})


def run(command: str, url: str, study: str = "night") -> Any:
    local = Local(
        storage=url, data_dir=None, artifacts=None, device="cpu", workers=1, pack=1, timeout=None
    )
    if command == "ablation":
        wanted = {"trial": None, "to": "baseline", "seeds": 2, "name": None, "dry_run": False}
        return ablate(Ablated(study=study, local=local, **wanted))  # type: ignore[arg-type]
    if command == "race":
        from rich.console import Console

        return race(Console(), Raced(study=study, top=None, seeds=None, local=local))
    return pruned(Pruned(study=study, sample=1, dry_run=False, local=local))


def test_a_copy_that_is_older_than_what_was_made_of_the_original_is_refused(
    storage: Storage, url: str, tmp_path: Path
) -> None:
    """Its pruned trials are others."""
    study = search(storage)
    number = study.trials[-1].number
    names = [f"trial {number}", f"trial {number + 1}"]
    arm = Arm(model=SEARCH.model, train=SEARCH.train)
    made = arms_specification(
        dict.fromkeys(names, arm), first_seed=0, data=DataConfig(), fingerprint="f",
        precision="auto",
    )  # fmt: skip
    attributes = {
        OF: made_of("night", study.user_attrs[STUDY_ID], "pruned"),
        SAMPLE: {"nearest": [], "random": [number], "others": 2},
        POOL: {"nearest": [number, number + 1], "drawn": [number, number + 1]},
    }
    open_study(storage, "night-pruned", made, 1, attributes=attributes)
    with pytest.raises(UsageError, match=f"'night-pruned' trains trial {number + 1}, which"):
        run("pruned", url)


def test_an_ablation_of_a_trial_that_an_older_copy_has_not_completed_is_refused(
    storage: Storage, tmp_path: Path
) -> None:
    """In words about the copies, not about an option that nobody gave."""
    study = search(storage)
    made = arms_specification(
        {"trial 40": Arm(model=SEARCH.model, train=SEARCH.train)},
        first_seed=0, data=DataConfig(), fingerprint="f", precision="auto",
    )  # fmt: skip
    of = made_of("night", study.user_attrs[STUDY_ID], "ablation")
    open_study(storage, "night-ablation", made, 1, attributes={OF: of})
    url = f"sqlite:///{tmp_path}/there.db"
    there = open_storage(url)
    copied(storage, "night", there, "day")
    copied(storage, "night-ablation", there, "x")
    there.close()
    with pytest.raises(UsageError) as refused:
        run("ablation", url, "day")
    assert str(refused.value) == (
        "STUDY: 'x' is about trial 40, which 'day' has not completed: they are copies of "
        "different age; give this command the newer ones of both, or another --name"
    )


def test_a_race_whose_study_is_not_there_names_no_command_for_it(
    storage: Storage, url: str
) -> None:
    study = search(storage)
    make_of(study, storage, "race")
    delete_study(study, storage)
    with pytest.raises(UsageError) as refused:
        run("race", url, "night-race")
    assert str(refused.value) == (
        "STUDY: 'night-race' is a race itself, and the study that it is of is not here; it was "
        "called 'night'; accepted: a search"
    )


@pytest.mark.parametrize("command", ["ablation", "race", "pruned"])
def test_what_was_made_of_a_deleted_study_is_not_gone_on_with(
    storage: Storage, url: str, command: str
) -> None:
    study = search(storage)
    make_of(study, storage, *COMPANIONS)
    delete_study(study, storage)
    search(storage)
    before = optuna.load_study(study_name=f"night-{command}", storage=storage)
    with pytest.raises(UsageError) as refused:
        run(command, url)
    line = str(refused.value)
    assert line.startswith(f"STUDY: 'night-{command}' is there already, and this command did not")
    assert line.endswith(f"begin anew: visweep delete night-{command} --storage {url}")
    assert ("give another --name, or" in line) == (command == "ablation")
    after = optuna.load_study(study_name=f"night-{command}", storage=storage)
    assert after.user_attrs == before.user_attrs


def test_copies_keep_what_was_made_of_them(storage: Storage, url: str, tmp_path: Path) -> None:
    make_of(search(storage), storage, "race")
    storage.close()
    there = f"sqlite:///{tmp_path}/there/studies.db"
    (tmp_path / "there").mkdir()
    for name in ("night", "night-race"):
        pack(url, name, tmp_path / f"{name}.visweep")
        unpack(tmp_path / f"{name}.visweep", there)
    (tmp_path / "merged").mkdir()
    files = [tmp_path / place / "studies.db" for place in ("here", "there", "merged")]
    merge(*files)
    for file in files:
        with_file = open_storage(f"sqlite:///{file}")
        study = optuna.load_study(study_name="night", storage=with_file)
        assert list(read(study).companions) == ["race"]
        assert made_of_it(study) == ["night-race"]
        with_file.close()


def copied(storage: Storage, name: str, to: Storage, new: str) -> optuna.Study:
    """A copy of a study under another name, as Optuna makes it."""
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=to, to_study_name=new)
    return optuna.load_study(study_name=new, storage=to)


def test_renamed_copies_find_each_other(storage: Storage, tmp_path: Path) -> None:
    make_of(search(storage), storage, *COMPANIONS)
    there = open_storage(f"sqlite:///{tmp_path}/there.db")
    study = copied(storage, "night", there, "winner of the night")
    for number, kind in enumerate(COMPANIONS):
        copied(storage, f"night-{kind}", there, f"{number} of them")
    found = read(study)
    assert {kind: other.name for kind, other in found.companions.items()} == {
        kind: f"{number} of them" for number, kind in enumerate(COMPANIONS)
    }
    assert found.others == []
    assert made_of_it(study) == [f"{number} of them" for number in range(4)]
    words = repr(document(study))
    assert "Study 0 of them (made when this one was called night), the best" in words
    there.close()


def test_commands_go_on_with_what_was_made_under_a_former_name(
    storage: Storage, tmp_path: Path
) -> None:
    make_of(search(storage), storage, "race", "ablation")
    there = open_storage(f"sqlite:///{tmp_path}/there.db")
    study = copied(storage, "night", there, "day")
    for kind in ("race", "ablation"):
        assert companion_name(study, kind) == f"day-{kind}"
        assert source_name(copied(storage, f"night-{kind}", there, f"the {kind}")) == "day"
    assert companion_name(study, "race") == "the race"
    assert companion_name(study, "pruned") == "day-pruned"
    # One that was begun anew is this one's own.
    make_of(study, there, "ablation")
    assert companion_name(study, "ablation") == "day-ablation"
    there.close()


def test_commands_take_nothing_of_the_original_beside_a_copy(storage: Storage) -> None:
    make_of(search(storage), storage, "race")
    copy = copied(storage, "night", storage, "copy")
    assert companion_name(copy, "race") == "copy-race"
    race_study = optuna.load_study(study_name="night-race", storage=storage)
    assert source_name(race_study) == "night"
    assert source_name(copy) is None


def test_a_foreign_study_of_the_usual_name_hides_none(storage: Storage, tmp_path: Path) -> None:
    make_of(search(storage), storage, "race")
    there = open_storage(f"sqlite:///{tmp_path}/there.db")
    study = copied(storage, "night", there, "day")
    open_study(there, "day-race", MADE, 4, attributes={OF: made_of("day", "another id", "race")})
    assert companion_name(study, "race") == "day-race"
    copied(storage, "night-race", there, "the race")
    assert companion_name(study, "race") == "the race"
    there.close()


def test_one_that_appears_meanwhile_is_found_as_it_is(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is is read once, so that all of it is of one moment."""
    study = search(storage)
    read_all, answers = storage.get_all_studies, []

    def meanwhile() -> Any:
        answers.append(read_all())
        make_of(study, storage, "race")
        return answers[-1]

    monkeypatch.setattr(storage, "get_all_studies", meanwhile)
    assert companion_name(study, "race") == "night-race"
    assert len(answers) == 1


def test_one_that_was_given_a_name_is_not_gone_on_with_unasked(storage: Storage) -> None:
    study = search(storage)
    of = made_of("night", study.user_attrs[STUDY_ID], "ablation")
    mine = open_study(storage, "mine", MADE, 4, attributes={OF: of}).study
    assert companion_name(study, "ablation") == "night-ablation"
    assert source_name(mine) == "night"
    delete_study(study, storage)
    assert source_name(mine) is None


def test_unpacked_under_another_name(storage: Storage, url: str, tmp_path: Path) -> None:
    make_of(search(storage), storage, "race", "ablation")
    storage.close()
    (tmp_path / "there").mkdir()
    there = f"sqlite:///{tmp_path}/there/studies.db"
    for name, new in (("night", "day"), ("night-race", "x"), ("night-ablation", "y")):
        pack(url, name, tmp_path / f"{name}.visweep")
        unpack(tmp_path / f"{name}.visweep", there, new)
    opened = open_storage(there)
    found = read(optuna.load_study(study_name="day", storage=opened)).companions
    assert {kind: other.name for kind, other in found.items()} == {"race": "x", "ablation": "y"}
    opened.close()


def test_a_copy_beside_its_original_takes_nothing_of_it(storage: Storage) -> None:
    """It may have gone its own way, and its trial 40 be another."""
    make_of(search(storage), storage, "race")
    copy = copied(storage, "night", storage, "copy")
    assert read(copy).companions == {}
    make_of(copy, storage, "race", "ablation")
    assert {o.name for o in read(copy).companions.values()} == {"copy-race", "copy-ablation"}
    night = read(optuna.load_study(study_name="night", storage=storage))
    assert [other.name for other in night.companions.values()] == ["night-race"]


def test_of_several_of_a_kind_one_is_shown_and_the_others_are_named(storage: Storage) -> None:
    study = search(storage)
    of = made_of("night", study.user_attrs[STUDY_ID], "ablation")
    for name in ("mine", "newest"):
        open_study(storage, name, MADE, 4, attributes={OF: of})
    assert read(study).companions["ablation"].name == "newest"
    open_study(storage, "night-ablation", MADE, 4, attributes={OF: of})
    open_study(storage, "later", MADE, 4, attributes={OF: of})
    found = read(study)
    assert found.companions["ablation"].name == "night-ablation"
    assert list(found.others) == ["later", "newest", "mine"]
    assert "each with a report of its own: later, newest and mine." in repr(document(study))


def test_without_an_id_the_name_tells(storage: Storage) -> None:
    for name in ("old", "copy of old"):
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
        study.set_user_attr("visweep:specification", {"identity": {}})
    open_study(storage, "x", MADE, 4, attributes={OF: made_of("old", None, "race")})
    both = [optuna.load_study(study_name=n, storage=storage) for n in ("old", "copy of old")]
    assert [list(read(study).companions) for study in both] == [["race"], []]


def test_hundreds_of_others_take_no_more_queries(storage: Storage) -> None:
    study = search(storage)
    make_of(study, storage, "race")
    asked: list[str] = []
    sa.event.listen(
        storage.engine,
        "before_cursor_execute",
        lambda _, __, statement, *___: asked.append(statement),
    )
    assert companions(study) == {"race": ["night-race"]}
    among_few = list(asked)
    with storage.transaction() as connection:
        ids = range(1000, 1400)
        connection.execute(
            sa.insert(studies), [{"study_id": i, "study_name": f"other {i}"} for i in ids]
        )
        said = json.dumps(made_of("another", "its id", "race"))
        of = [{"study_id": i, "key": OF, "value_json": said} for i in ids]
        connection.execute(sa.insert(study_attributes), of)
        notes = [
            {"study_id": i, "key": f"dashboard:note_str:{n}", "value_json": json.dumps("x" * 2000)}
            for i in ids
            for n in range(5)
        ]
        connection.execute(sa.insert(study_system_attributes), notes)
    asked.clear()
    assert companions(study) == {"race": ["night-race"]}
    assert asked == among_few


def test_deleting_names_them(storage: Storage, url: str, launcher: Any) -> None:
    make_of(search(storage), storage, "race", "pruned")
    storage.close()
    done = launcher.run("visweep", "delete", "night", "--yes", "--storage", url)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "deleted night",
        "what was made of it is still there: night-race and night-pruned",
    ]
