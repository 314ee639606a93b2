"""The configurations: what they refuse, and that JSON holds all of them."""

import dataclasses
import json
import subprocess
import sys
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visweep.config import (
    ConvNetConfig,
    DataConfig,
    TrainConfig,
    ViTBlock,
    ViTConfig,
    completed,
    from_json,
    to_json,
    with_parameters,
)
from visweep.errors import UsageError

RATES = st.floats(0.0, 1.0, exclude_max=True)
POSITIVE = st.floats(0.0, 1e6, exclude_min=True)
NOT_NEGATIVE = st.floats(0.0, 1e6)
COUNTS = st.integers(1, 64)


@st.composite
def vits(draw: st.DrawFn) -> ViTConfig:
    patch_size, num_heads = draw(COUNTS), draw(COUNTS)
    return ViTConfig(
        image_size=patch_size * draw(COUNTS),
        in_chans=draw(COUNTS),
        num_classes=draw(st.integers(2, 1000)),
        patch_size=patch_size,
        embed_dim=num_heads * draw(COUNTS),
        depth=draw(COUNTS),
        num_heads=num_heads,
        mlp_ratio=draw(st.floats(1.0, 8.0)),
        drop=draw(RATES),
        attn_drop=draw(RATES),
        class_token=draw(st.booleans()),
        block=draw(st.sampled_from(get_args(ViTBlock))),
    )


@st.composite
def convnets(draw: st.DrawFn) -> ConvNetConfig:
    stages = draw(st.integers(1, 5))
    entries = st.lists(COUNTS, min_size=stages, max_size=stages).map(tuple)
    return ConvNetConfig(
        image_size=2 ** (stages - 1) * draw(COUNTS),
        in_chans=draw(COUNTS),
        num_classes=draw(st.integers(2, 1000)),
        widths=draw(entries),
        depths=draw(entries),
        drop=draw(RATES),
        block=draw(st.sampled_from(["basic", "late_relu", "preadd_relu"])),
    )


TRAINS = st.builds(
    TrainConfig,
    epochs=COUNTS,
    batch_size=COUNTS,
    lr=POSITIVE,
    weight_decay=NOT_NEGATIVE,
    warmup_epochs=NOT_NEGATIVE,
    label_smoothing=RATES,
    clip_norm=POSITIVE,
    translate=st.integers(0, 8),
    flip=st.booleans(),
    precision=st.sampled_from(["auto", "float32", "bfloat16", "float64"]),
    seeds=st.lists(st.integers(), min_size=1, unique=True).map(tuple),
)
DATA = st.builds(
    DataConfig,
    name=st.text(),
    data_dir=st.none() | st.text(),
    image_size=st.none() | COUNTS,
    train_size=st.none() | COUNTS,
    split_seed=st.integers(),
)


@given(vits() | convnets() | TRAINS | DATA)
def test_json_gives_back_the_same(config: Any) -> None:
    text = json.dumps(to_json(config), allow_nan=False)
    restored = from_json(json.loads(text))
    assert restored == config
    assert type(restored) is type(config)
    assert json.dumps(to_json(restored)) == text


OLDER_VIT = {
    "kind": "vit",
    "image_size": 32,
    "in_chans": 1,
    "num_classes": 10,
    "patch_size": 8,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "drop": 0.0,
    "attn_drop": 0.0,
    "class_token": False,
}
"""As it was written before there were types of blocks."""


def test_what_was_stored_before_a_field_was_there_is_what_would_be_stored_now() -> None:
    assert to_json(ViTConfig()) == OLDER_VIT
    assert from_json(OLDER_VIT) == ViTConfig(block="pre_norm")
    assert to_json(ViTConfig(block="parallel")) == {**OLDER_VIT, "block": "parallel"}


@given(vits() | convnets() | TRAINS | DATA)
def test_completed_json_has_all_fields(config: Any) -> None:
    fields = {field.name for field in dataclasses.fields(config)}
    assert completed(to_json(config)).keys() == {"kind", *fields}
    assert from_json(completed(to_json(config))) == config


def test_what_is_no_configuration_is_completed_by_nothing() -> None:
    for values in ({}, {"kind": "vti"}, {"name": "tpe"}):
        assert completed(values) == values


@given(vits())
def test_a_vit_counts_its_tokens(config: ViTConfig) -> None:
    side = config.image_size // config.patch_size
    assert config.num_patches == side * side
    assert config.num_tokens == config.num_patches + config.class_token


VIT = ViTConfig(image_size=32, patch_size=8, embed_dim=64, num_heads=4)
CONVNET = ConvNetConfig(image_size=32, widths=(16, 32, 64), depths=(1, 1, 1))
TRAIN = TrainConfig()

INVALID = [
    (VIT, {"image_size": 0}),
    (VIT, {"in_chans": 0}),
    (VIT, {"num_classes": 1}),
    (VIT, {"patch_size": 5}),
    (VIT, {"patch_size": 64}),
    (VIT, {"patch_size": "8"}),
    (VIT, {"patch_size": 8.0}),
    (VIT, {"embed_dim": 63}),
    (VIT, {"depth": 0}),
    (VIT, {"depth": True}),
    (VIT, {"depth": None}),
    (VIT, {"num_heads": -1}),
    (VIT, {"mlp_ratio": 0.0}),
    (VIT, {"mlp_ratio": 1 / 65}),
    (VIT, {"mlp_ratio": float("inf")}),
    (VIT, {"mlp_ratio": float("nan")}),
    (VIT, {"drop": 1.0}),
    (VIT, {"drop": -0.1}),
    (VIT, {"drop": float("nan")}),
    (VIT, {"drop": "a\nb"}),
    (VIT, {"attn_drop": 1.5}),
    (VIT, {"class_token": 1}),
    (VIT, {"block": "post"}),
    (CONVNET, {"image_size": 3}),
    (CONVNET, {"in_chans": 0}),
    (CONVNET, {"num_classes": 0}),
    (CONVNET, {"widths": ()}),
    (CONVNET, {"widths": (16, 0, 64)}),
    (CONVNET, {"widths": (16, 32.0, 64)}),
    (CONVNET, {"widths": 16}),
    (CONVNET, {"depths": (1, 1)}),
    (CONVNET, {"drop": 1}),
    (CONVNET, {"block": "bsic"}),
    (TRAIN, {"epochs": 0}),
    (TRAIN, {"epochs": 1.5}),
    (TRAIN, {"batch_size": 0}),
    (TRAIN, {"lr": 0.0}),
    (TRAIN, {"lr": float("inf")}),
    (TRAIN, {"lr": "fast"}),
    (TRAIN, {"weight_decay": -1e-9}),
    (TRAIN, {"warmup_epochs": float("nan")}),
    (TRAIN, {"label_smoothing": 1.0}),
    (TRAIN, {"clip_norm": 0}),
    (TRAIN, {"translate": -1}),
    (TRAIN, {"flip": "no"}),
    (TRAIN, {"precision": "float16"}),
    (TRAIN, {"seeds": ()}),
    (TRAIN, {"seeds": (1, 1)}),
    (TRAIN, {"seeds": (0.5,)}),
    (DataConfig(), {"name": None}),
    (DataConfig(), {"data_dir": 3}),
    (DataConfig(), {"image_size": 0}),
    (DataConfig(), {"train_size": -5}),
    (DataConfig(), {"split_seed": 0.5}),
]


@pytest.mark.parametrize(
    ("config", "values"),
    INVALID,
    ids=lambda part: str(part) if isinstance(part, dict) else part.kind,
)
def test_refuses_in_one_line_that_names_field_and_value(
    config: Any, values: dict[str, Any]
) -> None:
    ((field, value),) = values.items()
    for make in (
        lambda: type(config)(**{**vars(config), **values}),
        lambda: config.replace(**values),
        lambda: from_json({**to_json(config), **values}),
    ):
        with pytest.raises(UsageError) as refusal:
            make()
        line = str(refusal.value)
        assert line.startswith(f"{field}: {value!r} is not ")
        assert "\n" not in line


def test_a_choice_is_refused_with_what_is_accepted() -> None:
    with pytest.raises(UsageError, match="'bsic' is not one of basic, late_relu, pread"):
        ConvNetConfig(block="bsic")  # type: ignore[arg-type]
    with pytest.raises(UsageError) as refusal:
        ViTConfig(block="basic")  # type: ignore[arg-type]
    accepted = "pre_norm, post_norm, single_residual, parallel"
    assert str(refusal.value) == f"block: 'basic' is not one of {accepted}"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"kind": "vti"}, "kind: unknown value 'vti'; accepted: .*; did you mean 'vit'"),
        ({}, "kind: unknown value ''; accepted: convnet, data, train, vit"),
        ({"kind": ["vit"]}, "kind: unknown value"),
        ({"kind": "vit", "dropp": 0.1}, "vit field: unknown value 'dropp'.*mean 'drop'"),
    ],
)
def test_unknown_json_is_refused(values: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        from_json(values)


def test_replace_refuses_an_unknown_field_and_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"train field: .*'epoch'.*mean 'epochs'"):
        TrainConfig().replace(epoch=3)


class TestWithParameters:
    def test_goes_to_the_model_or_else_to_the_training(self) -> None:
        model, train = with_parameters(VIT, TRAIN, {"depth": 3, "drop": 0.2, "lr": 0.01})
        assert model == VIT.replace(depth=3, drop=0.2)
        assert train == TRAIN.replace(lr=0.01)

    def test_is_checked_once_all_are_in_place(self) -> None:
        model, _ = with_parameters(VIT, TRAIN, {"embed_dim": 90, "num_heads": 3})
        assert (model.embed_dim, model.num_heads) == (90, 3)
        with pytest.raises(UsageError, match="embed_dim: 90 is not a multiple of num_heads 4"):
            with_parameters(VIT, TRAIN, {"embed_dim": 90})

    @given(st.dictionaries(st.integers(0, 2), COUNTS))
    def test_replaces_entries_of_a_tuple(self, entries: dict[int, int]) -> None:
        parameters = {f"widths.{index}": width for index, width in entries.items()}
        model, _ = with_parameters(CONVNET, TRAIN, parameters)
        expected = [entries.get(i, width) for i, width in enumerate(CONVNET.widths)]
        assert model == CONVNET.replace(widths=tuple(expected))

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            ("dephts.0", "unknown value 'dephts.0'.*did you mean 'depths'"),
            ("block_", "unknown value 'block_'.*did you mean 'block'"),
            ("weight_decy", "unknown value 'weight_decy'.*did you mean 'weight_decay'"),
            ("kind", "unknown value 'kind'"),
            ("replace", "unknown value 'replace'"),
            ("widths.3", r"'widths.3' names no entry of widths \(16, 32, 64\)"),
            ("widths.-1", "'widths.-1' names no entry"),
            ("widths.²", "'widths.²' names no entry"),
            ("widths.", "'widths.' names no entry"),
            ("drop.0", "'drop.0' names an entry, but drop has none"),
        ],
    )
    def test_refuses_what_it_cannot_place(self, name: str, line: str) -> None:
        with pytest.raises(UsageError, match=f"^parameter: {line}"):
            with_parameters(CONVNET, TRAIN, {name: 1})

    def test_refuses_an_invalid_value(self) -> None:
        with pytest.raises(UsageError, match=r"^widths: \(16, 0, 64\) is not"):
            with_parameters(CONVNET, TRAIN, {"widths.1": 0})


def test_imports_neither_torch_nor_optuna() -> None:
    code = "import sys, visweep.config; print({'torch', 'optuna'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout == "set()\n"
