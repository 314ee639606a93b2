"""No point of a shipped space is invalid, and a user's space is checked before the first trial."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from visweep.config import ConvNetConfig, TrainConfig, ViTConfig, with_parameters
from visweep.errors import UsageError
from visweep.search.recipe import Recipe
from visweep.search.spaces import (
    MOST_CORNERS,
    check_point,
    check_space,
    corners,
    into_space,
    patch_sizes,
    spread,
)

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


def recipe(name: str) -> Recipe:
    spec = importlib.util.spec_from_file_location(name, SWEEPS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Recipe = module.SEARCH
    return found


RECIPES = {name: recipe(name) for name in ("vit_search", "convnet_search")}
# 28-pixel images are padded to 32 when they are loaded.
SIZES = (32, 64, 96)


def fields(image_size: int) -> dict[str, Any]:
    return {"image_size": image_size, "in_chans": 3, "num_classes": 100}


def point_of(space: dict[str, BaseDistribution], data: st.DataObject) -> dict[str, Any]:
    def values(distribution: BaseDistribution) -> st.SearchStrategy[Any]:
        if isinstance(distribution, CategoricalDistribution):
            return st.sampled_from(list(distribution.choices))
        if isinstance(distribution, IntDistribution):
            return st.integers(distribution.low, distribution.high)
        assert isinstance(distribution, FloatDistribution)
        return st.floats(distribution.low, distribution.high)

    return {name: data.draw(values(d), label=name) for name, d in space.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("space_name", ["small", "report"])
@pytest.mark.parametrize("script", RECIPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_point_of_a_shipped_space_is_valid(
    script: str, space_name: str, size: int, data: st.DataObject
) -> None:
    shipped = RECIPES[script]
    space = dict(shipped.spaces[space_name](size))
    model, train = into_space(shipped.baseline, shipped.train, fields(size), space)
    with_parameters(model, train, point_of(space, data))
    baseline = {name: _value(model, name) for name in space}
    check_point(baseline, space)
    assert (model.image_size, model.in_chans, model.num_classes) == (size, 3, 100)


def _value(model: Any, name: str) -> Any:
    field, _, index = name.partition(".")
    value = getattr(model, field)
    return value[int(index)] if index else value


@pytest.mark.parametrize("script", RECIPES)
@pytest.mark.parametrize("space_name", ["small", "report"])
def test_the_check_accepts_what_is_shipped(script: str, space_name: str) -> None:
    shipped = RECIPES[script]
    check_space(shipped.spaces[space_name](32), shipped.baseline, shipped.train)


def test_the_small_space_has_what_the_issue_asks_for() -> None:
    space = RECIPES["vit_search"].spaces["small"](32)
    assert space.keys() == {
        "drop",
        "attn_drop",
        "patch_size",
        "embed_dim",
        "depth",
        "num_heads",
    }


def test_the_report_space_spans_the_students_values() -> None:
    space = RECIPES["vit_search"].spaces["report"](96)
    assert space == {
        "drop": FloatDistribution(0.0, 0.3),
        "attn_drop": FloatDistribution(0.0, 0.3),
        "patch_size": CategoricalDistribution([8, 16, 32]),
        "embed_dim": CategoricalDistribution([64, 96, 128, 184, 256]),
        "depth": IntDistribution(4, 24),
        "num_heads": CategoricalDistribution([2, 4, 8]),
    }


@given(
    image_size=st.integers(1, 300),
    candidates=st.lists(st.integers(1, 64), min_size=1, unique=True),
)
def test_patch_sizes_divide_the_image_and_leave_4_to_256_tokens(
    image_size: int, candidates: list[int]
) -> None:
    fitting = [p for p in candidates if image_size % p == 0 and 2 <= image_size // p <= 16]
    if fitting:
        assert list(patch_sizes(image_size, candidates).choices) == fitting
    else:
        with pytest.raises(UsageError) as refused:
            patch_sizes(image_size, candidates)
        size = int(str(refused.value).rpartition("try ")[2])
        assert patch_sizes(size, candidates), "the size that it suggests does not do either"


def test_an_image_size_that_suits_no_patch_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        RECIPES["vit_search"].spaces["small"](30)
    assert str(refused.value) == (
        "--image-size: 30 suits no patch_size of 4 8 16 (it must divide the image and leave 4 to "
        "256 tokens); try 32"
    )


@given(image_size=st.integers(8, 128))
@settings(deadline=None)
def test_a_baseline_moves_into_the_space_of_any_image_size(image_size: int) -> None:
    shipped = RECIPES["vit_search"]
    try:
        space = shipped.spaces["small"](image_size)
    except UsageError:
        return
    # The baseline's own patch size need not even divide the image.
    model, _ = into_space(shipped.baseline, shipped.train, fields(image_size), space)
    assert isinstance(model, ViTConfig)
    assert model.patch_size in list(space["patch_size"].choices)  # type: ignore[attr-defined]


def test_the_nearest_value_inside_is_taken() -> None:
    model, train = into_space(
        ConvNetConfig(widths=(16, 32, 64), depths=(1, 1, 1), block="basic", drop=0.1),
        TrainConfig(lr=0.5, weight_decay=0.05),
        {"in_chans": 3},
        {
            "widths.0": CategoricalDistribution([4, 8]),
            "widths.2": IntDistribution(100, 200),
            "depths.1": IntDistribution(1, 2),
            "block": CategoricalDistribution(["late_relu", "preadd_relu"]),
            "drop": FloatDistribution(0.0, 0.5),
            "lr": FloatDistribution(1e-4, 1e-2, log=True),
        },
    )
    assert model == ConvNetConfig(
        widths=(8, 32, 100), depths=(1, 1, 1), block="late_relu", drop=0.1, in_chans=3
    )
    assert train == TrainConfig(lr=1e-2, weight_decay=0.05)


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        (
            {"embed_dim": CategoricalDistribution([64, 90])},
            "the point embed_dim=90 is invalid: embed_dim: 90 is not a multiple of num_heads 4",
        ),
        (
            {"embed_dim": IntDistribution(64, 80), "depth": IntDistribution(1, 2)},
            "the point embed_dim=65, depth=1 is invalid",
        ),
        ({"drop": FloatDistribution(0.0, 1.0)}, "the point drop=1.0 is invalid"),
        ({"depht": IntDistribution(1, 2)}, "did you mean 'depth'?"),
        ({"widths.0": IntDistribution(1, 2)}, "widths.0"),
        ({"depth.0": IntDistribution(1, 2)}, "names an entry, but depth has none"),
        ({"lr": FloatDistribution(0.0, 0.1)}, "lr: 0.0 is not a number above 0"),
    ],
)
def test_an_invalid_space_is_refused_with_its_first_invalid_point(
    space: dict[str, BaseDistribution], reason: str
) -> None:
    with pytest.raises(UsageError) as refused:
        check_space(space, ViTConfig(), TrainConfig())
    assert str(refused.value).startswith("--space: ")
    assert reason in str(refused.value)


def test_a_large_space_is_checked_at_its_ends() -> None:
    space: dict[str, BaseDistribution] = {
        "depth": IntDistribution(1, 1000),
        "mlp_ratio": FloatDistribution(1.0, 8.0),
        "embed_dim": IntDistribution(64, 66),
    }
    with pytest.raises(UsageError, match="embed_dim=66"):
        check_space(space, ViTConfig(), TrainConfig())


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ({"depht": 3}, "enqueued parameter 'depht' is not in the space"),
        ({"depth": 9}, "enqueued depth=9 is not in IntDistribution(high=6"),
        ({"depth": "deep"}, "enqueued depth='deep' is not in"),
        ({"num_heads": 3}, "enqueued num_heads=3 is not in Categorical"),
        ({"drop": -0.1}, "enqueued drop=-0.1 is not in Float"),
        ({"drop": float("nan")}, "enqueued drop=nan is not in Float"),
        ({"drop": None}, "enqueued drop=None is not in Float"),
    ],
)
def test_an_enqueued_point_outside_the_space_is_refused(
    point: dict[str, Any], reason: str
) -> None:
    space = RECIPES["vit_search"].spaces["small"](32)
    with pytest.raises(UsageError) as refused:
        check_point(point, space)
    assert reason in str(refused.value)
    check_point({"depth": 3, "drop": 0.1}, space)


def test_corners_are_all_ends_and_choices() -> None:
    space: dict[str, BaseDistribution] = {
        "depth": IntDistribution(1, 5),
        "drop": FloatDistribution(0.0, 0.0),
        "num_heads": CategoricalDistribution([2, 4]),
    }
    assert [tuple(p.values()) for p in corners(space)] == [
        (1, 0.0, 2),
        (1, 0.0, 4),
        (5, 0.0, 2),
        (5, 0.0, 4),
    ]
    assert {p["depth"] for p in corners(space, middle=True)} == {1, 3, 5}


NINE = {f"p{i}": CategoricalDistribution(list(range(12))) for i in range(9)}


class TestManyCorners:
    def test_some_from_all_over_the_space_are_looked_at(self) -> None:
        found = [tuple(point.values()) for point in corners(NINE)]
        assert len(set(found)) == len(found) == MOST_CORNERS
        assert (found[0], found[-1]) == ((0,) * 9, (11,) * 9)
        for parameter in range(9):
            assert {point[parameter] for point in found} == set(range(12))
        assert [tuple(point.values()) for point in corners(NINE)] == found

    def test_of_few_there_are_all_in_order(self) -> None:
        space = {"a": CategoricalDistribution([1, 2]), "b": IntDistribution(0, 9)}
        found = [tuple(point.values()) for point in corners(space)]
        assert found == [(1, 0), (1, 9), (2, 0), (2, 9)]

    def test_an_invalid_choice_of_the_first_parameter_is_found(self) -> None:
        many = CategoricalDistribution([n / 100 for n in range(30)])
        space = {
            "embed_dim": CategoricalDistribution([8, 16, 9]),
            "drop": many,
            "attn_drop": many,
            "mlp_ratio": CategoricalDistribution([1 + n / 10 for n in range(30)]),
        }
        with pytest.raises(UsageError, match=r"the point embed_dim=9, .* is invalid"):
            check_space(space, ViTConfig(embed_dim=8, num_heads=2), TrainConfig())

    @given(st.integers(1, 10**30), st.integers(1, 50), st.integers(0, 2**64))
    def test_no_number_comes_twice(self, count: int, most: int, start: int) -> None:
        found = list(spread(count, most, start))
        assert len(set(found)) == len(found) == min(count, most)
        assert all(0 <= number < count for number in found)
