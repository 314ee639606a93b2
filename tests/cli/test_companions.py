"""Studies that were made of another one are tied to it, and not to whatever has its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from arms_studies import arms_of_report
from visweep.analysis.overview import COMPANIONS, read
from visweep.cli.ablate import Wanted as Ablated
from visweep.cli.ablate import ablate
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
from visweep.storage.engine import Storage
from visweep.storage.merge import merge
from visweep.storage.opening import open_storage
from visweep.storage.pack import pack, unpack
from visweep.storage.specification import OF, STUDY_ID, Specification, made_of

SPACE = {"depth": CategoricalDistribution([2, 4])}
SEARCH = Specification(
    space=SPACE,
    data=DataConfig(),
    fingerprint="f",
    model=ViTConfig(depth=4),
    train=TrainConfig(epochs=2),
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
    assert made_of_it(study, storage) == [f"night-{kind}" for kind in COMPANIONS]
    delete_study(study, storage)
    again = search(storage)
    assert read(again).companions == {}
    assert made_of_it(again, storage) == []


def run(command: str, url: str) -> Any:
    local = Local(
        storage=url, data_dir=None, artifacts=None, device="cpu", workers=1, pack=1, timeout=None
    )
    if command == "ablation":
        wanted = {"trial": None, "to": "baseline", "seeds": 2, "name": None, "dry_run": False}
        return ablate(Ablated(study="night", local=local, **wanted))  # type: ignore[arg-type]
    if command == "race":
        from rich.console import Console

        return race(Console(), Raced(study="night", top=None, seeds=None, local=local))
    return pruned(Pruned(study="night", sample=1, dry_run=False, local=local))


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
        assert made_of_it(study, with_file) == ["night-race"]
        with_file.close()


def test_deleting_names_them(storage: Storage, url: str, launcher: Any) -> None:
    make_of(search(storage), storage, "race", "pruned")
    storage.close()
    done = launcher.run("visweep", "delete", "night", "--yes", "--storage", url)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "deleted night",
        "what was made of it is still there: night-race and night-pruned",
    ]
