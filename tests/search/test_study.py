from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from visweep.errors import SpecificationMismatch, UsageError
from visweep.search.study import (
    STOP,
    checkpoints_of,
    images_folder,
    load_study,
    open_study,
    specification_of,
)
from visweep.storage.engine import Storage
from visweep.storage.specification import BUDGET, STUDY_ID, Specification


def digest(storage: Storage) -> str:
    """Of everything in the database."""
    with storage.reading() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
        return hashlib.sha256("\n".join(raw.iterdump()).encode()).hexdigest()  # type: ignore[attr-defined]


def test_a_study_is_created_with_its_specification(
    storage: Storage, specification: Specification
) -> None:
    opened = open_study(storage, "study", specification, 4)
    study = optuna.load_study(study_name="study", storage=storage)
    assert specification_of(study) == specification
    assert study.user_attrs[BUDGET] == 4
    assert study.direction.name == "MAXIMIZE"
    assert [t.state for t in study.trials] == [TrialState.WAITING] * 4
    assert study.trials[0].system_attrs["fixed_params"] == specification.baseline()
    assert opened.specification == specification


def test_it_is_resumed_with_another_budget(storage: Storage, specification: Specification) -> None:
    first = open_study(storage, "study", specification, 4)
    moved = replace(specification, data=specification.data.replace(data_dir="/elsewhere"))
    again = open_study(storage, "study", moved, 6)
    assert (again.study_id, again.study.user_attrs[BUDGET]) == (first.study_id, 6)
    assert again.checkpoints.place.folder == first.checkpoints.place.folder
    assert len(again.study.trials) == 6


def test_it_goes_on_in_the_number_format_that_it_was_begun_in(
    storage: Storage, specification: Specification
) -> None:
    # `auto` is resolved by the device, and a study may be resumed on another one.
    open_study(storage, "study", specification, 1)
    elsewhere = replace(specification, train=specification.train.replace(precision="bfloat16"))
    opened = open_study(storage, "study", elsewhere, 1)
    assert opened.specification == specification
    assert opened.specification.train.precision == "float32"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"train": {"epochs": 2}}, "train.epochs was 3, now 2"),
        ({"train": {"lr": 0.5}}, "train.lr was 0.002, now 0.5"),
        ({"seed": 9}, "seed was 0, now 9"),
        ({"sampler": "random"}, "sampler.name was 'tpe', now 'random'"),
        ({"fingerprint": "0" * 64}, "the content of the data changed"),
    ],
)
def test_resuming_it_as_something_else_changes_nothing(
    storage: Storage, specification: Specification, changes: dict[str, Any], field: str
) -> None:
    open_study(storage, "study", specification, 4)
    before = digest(storage)
    if "train" in changes:
        changes = {"train": specification.train.replace(**changes["train"])}
    with pytest.raises(SpecificationMismatch) as refused:
        open_study(storage, "study", replace(specification, **changes), 9)
    assert field in str(refused.value)
    assert digest(storage) == before


def test_a_study_of_another_tool_is_left_alone(
    storage: Storage, specification: Specification
) -> None:
    theirs = optuna.create_study(study_name="theirs", storage=storage, direction="maximize")
    theirs.add_trial(create_trial(value=1.0))
    optuna.create_study(study_name="losses", storage=storage, direction="minimize")
    before = digest(storage)
    for name in ("theirs", "losses"):
        with pytest.raises(UsageError, match="made by another tool; give another name"):
            open_study(storage, name, specification, 4)
    assert digest(storage) == before


def test_a_kill_between_creating_and_describing_it_is_mended(
    storage: Storage, specification: Specification
) -> None:
    optuna.create_study(study_name="study", storage=storage, direction="maximize")
    opened = open_study(storage, "study", specification, 3)
    assert specification_of(opened.study) == specification
    assert len(opened.study.trials) == 3


def test_two_that_create_it_at_once_agree_on_its_folder(
    storage: Storage, specification: Specification
) -> None:
    first = open_study(storage, "study", specification, 3)
    identifier = first.study.user_attrs[STUDY_ID]
    # What the second would write, had it looked before the first was done.
    assert not storage.set_study_attributes_once(
        first.study_id,
        {"visweep:specification": {"identity": {}}, STUDY_ID: "another"},
    )
    assert first.study.user_attrs[STUDY_ID] == identifier


def test_a_study_of_the_same_name_as_a_deleted_one_has_a_folder_of_its_own(
    storage: Storage, specification: Specification, file: Path
) -> None:
    first = open_study(storage, "a/b: c", specification, 1)
    optuna.delete_study(study_name="a/b: c", storage=storage)
    second = open_study(storage, "a/b: c", specification, 1)
    assert first.checkpoints.place.folder != second.checkpoints.place.folder
    assert second.checkpoints.place.folder.parent == file.parent / "artifacts"
    assert checkpoints_of(second.study, storage).place.folder == second.checkpoints.place.folder


def test_a_misspelt_name_suggests_the_nearest(
    storage: Storage, specification: Specification
) -> None:
    with pytest.raises(UsageError, match="the storage holds no studies"):
        load_study(storage, "night")
    open_study(storage, "night-run", specification, 1)
    open_study(storage, "other", specification, 1)
    with pytest.raises(UsageError, match=r"STUDY: unknown value 'nightrun'.*mean 'night-run'\?"):
        load_study(storage, "nightrun")
    assert load_study(storage, "night-run").study_name == "night-run"


def test_a_study_without_specification_has_none_to_tell(storage: Storage) -> None:
    study = optuna.create_study(study_name="theirs", storage=storage)
    with pytest.raises(UsageError, match="was not made by visweep"):
        specification_of(study)


def test_opening_clears_a_stop(storage: Storage, specification: Specification) -> None:
    opened = open_study(storage, "study", specification, 1)
    opened.study.set_user_attr(STOP, True)
    again = open_study(storage, "study", specification, 1)
    assert again.study.user_attrs[STOP] is False


def test_the_space_may_name_fields_of_the_training(
    storage: Storage, specification: Specification
) -> None:
    wider = replace(specification, space={**specification.space, "lr": FloatDistribution(0, 1)})
    opened = open_study(storage, "study", wider, 1)
    assert opened.study.trials[0].system_attrs["fixed_params"]["lr"] == specification.train.lr


def test_who_else_works_on_it_is_told(
    storage: Storage,
    specification: Specification,
    file: Path,
    launcher: Any,
    tmp_path: Path,
    wait_for: Any,
) -> None:
    url = f"sqlite:///{file}"
    opened = open_study(storage, "study", specification, 4)
    lease = opened.slots.take()
    assert lease is not None
    opened.slots.begin(lease, specification.baseline(), specification.space)
    script = tmp_path / "work.py"
    script.write_text(
        "import sys, time\n"
        "from dataclasses import replace\n"
        "from visweep.search.study import join_study\n"
        "from visweep.storage.opening import open_storage\n"
        "from visweep.storage.owner import this_process\n"
        "from visweep.storage.slots import Slots\n"
        "storage = open_storage(sys.argv[1])\n"
        "opened = join_study(storage, 'study')\n"
        "owner = this_process()\n"
        "owner = replace(owner, host=sys.argv[2]) if sys.argv[2:] else owner\n"
        "slots = Slots(storage, opened.study_id, owner)\n"
        "spec = opened.specification\n"
        "lease = slots.take()\n"
        "slots.begin(lease, spec.baseline(), spec.space)\n"
        "for epoch in (1, 2):\n"
        "    storage.set_trial_intermediate_value(lease.trial_id, epoch, epoch / 10)\n"
        "print('begun', flush=True)\n"
        "time.sleep(600)\n"
    )
    here, elsewhere = launcher.start(script, url), launcher.start(script, url, "host of ada")
    for child in (here, elsewhere):
        wait_for(lambda c=child: "begun" in c.stdout, about=child)
    seen = opened.progress()
    assert (seen.running, seen.elsewhere) == (3, 1)
    (beside,) = seen.beside
    assert (beside.state, beside.curve) == (f"process {here.pid}", (0.1, 0.2))
    assert (beside.parameters, beside.epochs) == (
        specification.baseline(), specification.train.epochs,
    )  # fmt: skip
    here.kill()
    assert opened.progress().beside == ()


def test_images_are_where_this_machine_found_them_last(
    storage: Storage, specification: Specification, tmp_path: Path
) -> None:
    def begin_in(folder: str | None) -> optuna.Study:
        data = specification.data.replace(data_dir=folder)
        return open_study(storage, "study", replace(specification, data=data), 3).study

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert images_folder(begin_in(None)) is None
    # Before any trial has ended, as after a kill in the first one.
    study = begin_in(str(first))
    assert images_folder(study) == str(first)
    assert images_folder(begin_in(None)) == str(first)
    # Another machine has gone on with it since.
    for number, folder in enumerate((second, "/nowhere/else")):
        study.add_trial(
            create_trial(value=0.5, user_attrs={"provenance": {"data_dir": str(folder)}})
        )
        assert images_folder(study) == str(first), number
    begin_in("/nowhere/else")
    assert images_folder(study) == str(second)
    second.rmdir()
    assert images_folder(study) is None
