from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

import visweep
from visweep.config import ConvNetConfig, DataConfig, TrainConfig, ViTConfig
from visweep.errors import SpecificationMismatch
from visweep.storage.limits import NO_LIMITS, Limits
from visweep.storage.specification import Specification, provenance, require_same

DATA = DataConfig(name="cluttered-digits", train_size=300)
TRAIN = TrainConfig(epochs=3, precision="float32")
SPECIFICATION = Specification(
    space={
        "drop": FloatDistribution(0.0, 0.3),
        "depth": IntDistribution(2, 6),
        "num_heads": CategoricalDistribution([2, 4, 8]),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
    },
    data=DATA,
    fingerprint="0123456789abcdef" * 4,
    model=ViTConfig(depth=4),
    train=TRAIN,
    sampler="tpe",
    pruner="hyperband",
    seed=0,
)


def stored(specification: Specification) -> dict[str, Any]:
    """As it comes back from the database."""
    identity: dict[str, Any] = json.loads(json.dumps(specification.identity()))
    return identity


def refused(before: Specification, now: Specification) -> str:
    with pytest.raises(SpecificationMismatch) as e:
        require_same("night-run", stored(before), now)
    message = str(e.value)
    assert message.startswith("study 'night-run': ")
    assert message.endswith("; start another one with --study NAME")
    assert "\n" not in message
    return message


distributions = st.one_of(
    st.tuples(st.integers(-5, 5), st.integers(0, 9), st.integers(1, 3)).map(
        lambda t: IntDistribution(t[0], t[0] + t[1] * t[2], step=t[2])
    ),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda t: FloatDistribution(min(t), max(t))),
    st.lists(st.integers(1, 512), min_size=1, unique=True).map(CategoricalDistribution),
    st.lists(st.text(max_size=5), min_size=1, unique=True).map(CategoricalDistribution),
)


@given(
    space=st.dictionaries(st.text(min_size=1, max_size=12), distributions, max_size=6),
    seed=st.integers(0, 2**32),
    lr=st.floats(1e-6, 1.0),
    widths=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    train_size=st.none() | st.integers(1, 10**6),
)
def test_an_identity_survives_the_database(
    space: Any, seed: int, lr: float, widths: list[int], train_size: int | None
) -> None:
    specification = dataclasses.replace(
        SPECIFICATION,
        space=space,
        seed=seed,
        data=DataConfig(train_size=train_size),
        model=ConvNetConfig(widths=tuple(widths), depths=(1,) * len(widths)),
        train=TrainConfig(lr=lr, seeds=(seed, seed + 1)),
    )
    again = Specification.from_identity(stored(specification))
    assert again == specification
    require_same("study", stored(specification), again)


CHANGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "data.name": ({"data": DATA.replace(name="mnist")}, "'cluttered-digits'", "'mnist'"),
    "data.train_size": ({"data": DATA.replace(train_size=None)}, "300", "not given"),
    "data.image_size": ({"data": DATA.replace(image_size=64)}, "not given", "64"),
    "data.split_seed": ({"data": DATA.replace(split_seed=1)}, "0", "1"),
    "model.depth": ({"model": ViTConfig(depth=5)}, "4", "5"),
    "model.block": (
        {"model": ViTConfig(depth=4, block="parallel")},
        "'pre_norm'",
        "'parallel'",
    ),
    "sampler.name": ({"sampler": "random"}, "'tpe'", "'random'"),
    "pruner.name": ({"pruner": "none"}, "'hyperband'", "'none'"),
    "seed": ({"seed": 7}, "0", "7"),
    "duplicates": ({"duplicates": "skip"}, "'replicate'", "'skip'"),
    "--max-params": ({"limits": Limits(max_params=10**6)}, "not given", "1000000"),
    "--max-flops": ({"limits": Limits(max_flops=10**7)}, "not given", "10000000"),
    "--max-epoch-seconds": ({"limits": Limits(max_epoch_seconds=2.5)}, "not given", "2.5"),
    "space.depth": (
        {"space": {**SPECIFICATION.space, "depth": IntDistribution(2, 8)}},
        '"high": 6',
        '"high": 8',
    ),
    "space.attn_drop": (
        {"space": {**SPECIFICATION.space, "attn_drop": FloatDistribution(0, 0.5)}},
        "not given",
        '"high": 0.5',
    ),
    "train.precision": ({"train": TRAIN.replace(precision="bfloat16")}, "'float32'", "'bfloat16'"),
    "train.flip": ({"train": TRAIN.replace(flip=True)}, "False", "True"),
    "train.seeds": ({"train": TRAIN.replace(seeds=(0, 1))}, "[0]", "[0, 1]"),
    "train.label_smoothing": ({"train": TRAIN.replace(label_smoothing=0.2)}, "0.1", "0.2"),
    "train.epochs": ({"train": TRAIN.replace(epochs=2)}, "3", "2"),
    "train.lr": ({"train": TRAIN.replace(lr=0.5)}, "0.002", "0.5"),
    "train.batch_size": ({"train": TRAIN.replace(batch_size=32)}, "64", "32"),
    "train.weight_decay": ({"train": TRAIN.replace(weight_decay=0.5)}, "0.05", "0.5"),
    "train.warmup_epochs": ({"train": TRAIN.replace(warmup_epochs=2.0)}, "1.0", "2.0"),
    "train.clip_norm": ({"train": TRAIN.replace(clip_norm=5.0)}, "1.0", "5.0"),
    "train.translate": ({"train": TRAIN.replace(translate=3)}, "2", "3"),
    "train.train_curves": ({"train": TRAIN.replace(train_curves=True)}, "False", "True"),
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_that_differs_is_named_with_both_values(field: str) -> None:
    changes, before, now = CHANGES[field]
    message = refused(SPECIFICATION, dataclasses.replace(SPECIFICATION, **changes))
    assert f": {field} was " in message
    was, is_now = message.split(f"{field} was ")[1].split(", now ")
    assert before in was
    assert now in is_now


def test_every_field_of_the_training_is_part_of_the_identity() -> None:
    tried = {name.removeprefix("train.") for name in CHANGES if name.startswith("train.")}
    assert tried == {field.name for field in dataclasses.fields(TrainConfig)}


def test_every_field_of_the_data_but_its_place_is_part_of_the_identity() -> None:
    tried = {name.removeprefix("data.") for name in CHANGES if name.startswith("data.")}
    assert tried == {field.name for field in dataclasses.fields(DataConfig)} - {"data_dir"}
    moved = SPECIFICATION.data.replace(data_dir="/elsewhere")
    require_same("study", stored(SPECIFICATION), dataclasses.replace(SPECIFICATION, data=moved))


def test_a_study_from_before_there_were_duplicates_goes_on() -> None:
    """Under the default, so that the command that began it goes on with it."""
    older = stored(SPECIFICATION)
    del older["duplicates"]
    assert Specification.from_identity(older) == SPECIFICATION
    require_same("study", older, SPECIFICATION)
    with pytest.raises(SpecificationMismatch, match="duplicates was 'replicate', now 'run'"):
        require_same("study", older, dataclasses.replace(SPECIFICATION, duplicates="run"))


def test_a_study_from_before_there_were_types_of_blocks_goes_on() -> None:
    assert "block" not in stored(SPECIFICATION)["model"], "older versions read it, too"
    assert Specification.from_identity(stored(SPECIFICATION)) == SPECIFICATION
    spelled_out = stored(SPECIFICATION)
    spelled_out["model"]["block"] = "pre_norm"
    require_same("study", spelled_out, SPECIFICATION)
    other = dataclasses.replace(SPECIFICATION, model=ViTConfig(depth=4, block="post_norm"))
    assert Specification.from_identity(stored(other)) == other
    with pytest.raises(SpecificationMismatch, match="block was 'post_norm', now 'pre_norm'"):
        require_same("study", stored(other), SPECIFICATION)


def test_a_study_from_before_there_were_limits_has_none() -> None:
    assert "limits" not in stored(SPECIFICATION), "older versions read it, too"
    assert Specification.from_identity(stored(SPECIFICATION)).limits == NO_LIMITS


def test_limits_survive_the_database_with_who_judges_them() -> None:
    judge = {"calibration": {"step": {"passes": 1e-3}}, "train_images": 300}
    limits = Limits(max_params=10**6, max_epoch_seconds=2.5, judge=judge)
    limited = dataclasses.replace(SPECIFICATION, limits=limits)
    again = Specification.from_stored(json.loads(json.dumps(limited.stored())))
    assert again == limited
    assert again.limits.judge == judge
    # Who judges is no part of what the study is.
    elsewhere = dataclasses.replace(limited, limits=limits.with_judge(None))
    require_same("study", stored(limited), elsewhere)
    assert "--max-epoch-seconds was 2.5, now not given (and 1 more)" in refused(
        limited, SPECIFICATION
    )


def test_another_kind_of_model_is_another_study() -> None:
    message = refused(SPECIFICATION, dataclasses.replace(SPECIFICATION, model=ConvNetConfig()))
    assert "more)" in message


def test_changed_images_are_explained() -> None:
    changed = dataclasses.replace(SPECIFICATION, fingerprint="f" * 64)
    message = refused(SPECIFICATION, changed)
    assert "the content of the data changed since it began" in message
    assert "0123456789ab" in message
    assert "ffffffffffff" in message


def test_a_changed_option_explains_more_than_the_images_that_follow_from_it() -> None:
    changed = dataclasses.replace(
        SPECIFICATION, fingerprint="f" * 64, data=DATA.replace(name="mnist")
    )
    assert "data.name was 'cluttered-digits', now 'mnist'" in refused(SPECIFICATION, changed)


def test_the_baseline_is_read_from_model_and_training() -> None:
    assert SPECIFICATION.baseline() == {"drop": 0.0, "depth": 4, "num_heads": 4, "lr": 2e-3}
    stages = dataclasses.replace(
        SPECIFICATION,
        model=ConvNetConfig(widths=(8, 16), depths=(1, 2)),
        space={"widths.1": IntDistribution(8, 32), "depths.0": IntDistribution(1, 2)},
    )
    assert stages.baseline() == {"widths.1": 16, "depths.0": 1}


def test_provenance_tells_who_ran_a_trial_with_what() -> None:
    found = json.loads(json.dumps(provenance("cpu", "images", threads=2)))
    assert found.keys() == {
        "versions", "python", "machine", "host", "device", "threads", "data_dir", "commit",
    }  # fmt: skip
    assert found["threads"] == 2
    assert found["data_dir"] == str(Path("images").resolve())
    assert found["device"] == "cpu"
    assert {"visweep", "torch", "optuna", "sqlalchemy", "numpy"} <= found["versions"].keys()
    assert found["versions"]["optuna"] >= "5"
    root = Path(visweep.__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        assert head.startswith(found["commit"].removesuffix("-dirty"))
