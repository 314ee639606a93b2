"""What is trained, on what, and how: frozen dataclasses that validate themselves.

They hold plain JSON values only, so that a study can store them and any machine can rebuild them:
`from_json(to_json(config)) == config`. Neither torch nor Optuna is imported here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from visweep.errors import UsageError, unknown_name

Precision = Literal["auto", "float32", "bfloat16", "float64"]
ViTBlock = Literal["pre_norm", "post_norm", "single_residual", "parallel"]
ConvBlock = Literal["basic", "late_relu", "preadd_relu"]
Config = TypeVar("Config", bound="_Config")


@dataclass(frozen=True, kw_only=True)
class _Config:
    kind: ClassVar[str]
    free_in_bucket: ClassVar[Mapping[str, Any]] = {}
    """In which fields configurations of one bucket may differ, and what stands there instead."""
    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out of the JSON where they have their default: they came later, and
    what was stored before is the same as what would be stored now."""

    def __post_init__(self) -> None:
        for name, hint in _field_types(type(self)).items():
            if not _matches(getattr(self, name), hint):
                self._require(False, name, _described(hint))
        self._validate()

    def _validate(self) -> None:
        """Refuse values that their types alone would admit."""
        raise NotImplementedError

    def _require(self, holds: bool, field: str, accepted: str) -> None:
        if not holds:
            raise UsageError(f"{field}: {getattr(self, field)!r} is not {accepted}")

    @property
    def bucket(self: Config) -> Config:
        """What those that can share a pass have in common: it is equal for them."""
        return dataclasses.replace(self, **self.free_in_bucket)

    def replace(self: Config, **changes: Any) -> Config:
        """A copy with some fields changed; an unknown field is refused by name."""
        names = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in names:
                raise unknown_name(f"{self.kind} field", name, names)
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class ViTConfig(_Config):
    """A Vision Transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929)."""

    kind: ClassVar[str] = "vit"
    # Block l runs over the models that are deep enough, and heads only change a reshape.
    free_in_bucket: ClassVar[Mapping[str, Any]] = {
        "depth": 1,
        "num_heads": 1,
        "drop": 0.0,
        "attn_drop": 0.0,
    }
    later: ClassVar[frozenset[str]] = frozenset({"block"})

    image_size: int = 32
    """Height and width of the input, in pixels."""
    in_chans: int = 1
    """Channels of the input: 1 for grey, 3 for RGB."""
    num_classes: int = 10
    """Number of logits."""
    patch_size: int = 8
    """Height and width of one patch, in pixels; must divide `image_size`."""
    embed_dim: int = 64
    """Width of a token; must be a multiple of `num_heads`."""
    depth: int = 6
    """Number of transformer blocks."""
    num_heads: int = 4
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, as a multiple of `embed_dim`."""
    drop: float = 0.0
    """Dropout after the position embedding, the attention projection and both MLP layers."""
    attn_drop: float = 0.0
    """Dropout of the attention weights."""
    class_token: bool = False
    """Classify from a class token; otherwise from the mean over all tokens."""
    block: ViTBlock = "pre_norm"
    """`pre_norm`: x + attn(norm1(x)), then x + mlp(norm2(x)), as in Dosovitskiy et al. 2021.
    `post_norm`: norm1(x + attn(x)), then norm2(x + mlp(x)), as in Vaswani et al. 2017,
    https://arxiv.org/abs/1706.03762.
    `single_residual`: x + mlp(norm2(attn(norm1(x)))): one residual step around both.
    `parallel`: x + attn(norm1(x)) + mlp(norm1(x)): one norm for both, as in Dehghani et al. 2023,
    https://arxiv.org/abs/2302.05442, but without that paper's norms of queries and keys, and with
    all biases."""

    def _validate(self) -> None:
        for field in ("image_size", "in_chans", "patch_size", "embed_dim", "depth", "num_heads"):
            self._require(getattr(self, field) >= 1, field, "at least 1")
        self._require(self.num_classes >= 2, "num_classes", "at least 2")
        self._require(
            self.image_size % self.patch_size == 0,
            "patch_size",
            f"a divisor of image_size {self.image_size}",
        )
        self._require(
            self.embed_dim % self.num_heads == 0,
            "embed_dim",
            f"a multiple of num_heads {self.num_heads}",
        )
        self._require(
            1.0 <= self.embed_dim * self.mlp_ratio < float("inf"),
            "mlp_ratio",
            f"a number of at least 1/{self.embed_dim} (1/embed_dim)",
        )
        for field in ("drop", "attn_drop"):
            self._require(0.0 <= getattr(self, field) < 1.0, field, "in [0, 1)")

    @property
    def stack_order(self) -> tuple[int, ...]:
        """Models of a bucket stack in this order: the deepest first, equal heads side by side."""
        return (-self.depth, self.num_heads)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        return self.num_patches + int(self.class_token)


@dataclass(frozen=True, kw_only=True)
class ConvNetConfig(_Config):
    """Residual stages of basic blocks (He et al. 2016, https://arxiv.org/abs/1512.03385)."""

    kind: ClassVar[str] = "convnet"
    free_in_bucket: ClassVar[Mapping[str, Any]] = {"drop": 0.0}

    image_size: int = 32
    """Height and width of the input, in pixels."""
    in_chans: int = 1
    """Channels of the input: 1 for grey, 3 for RGB."""
    num_classes: int = 10
    """Number of logits."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage; every stage after the first halves height and width."""
    depths: tuple[int, ...] = (1, 1, 1)
    """Residual blocks of each stage."""
    drop: float = 0.0
    """Dropout between the global average pooling and the head."""
    block: ConvBlock = "basic"
    """`basic`: relu(x + norm(conv(relu(norm(conv(x)))))).
    `late_relu`: x + relu(conv(norm(conv(x)))): no ReLU between the convolutions, one after both.
    `preadd_relu`: x + relu(norm(conv(relu(norm(conv(x)))))): the last ReLU before the addition, as
    in figure 4(c) of He et al. 2016, https://arxiv.org/abs/1603.05027.
    Where the shape changes, x is first projected: norm(conv(x)) with a strided 1×1 convolution."""

    def _validate(self) -> None:
        for field in ("image_size", "in_chans"):
            self._require(getattr(self, field) >= 1, field, "at least 1")
        self._require(self.num_classes >= 2, "num_classes", "at least 2")
        for field in ("widths", "depths"):
            values = getattr(self, field)
            self._require(len(values) > 0 and min(values) >= 1, field, "one or more of at least 1")
        self._require(
            len(self.depths) == len(self.widths), "depths", f"as long as widths {self.widths}"
        )
        self._require(
            self.image_size >= 2 ** (len(self.widths) - 1),
            "image_size",
            f"large enough for {len(self.widths)} stages",
        )
        self._require(0.0 <= self.drop < 1.0, "drop", "in [0, 1)")

    @property
    def stack_order(self) -> tuple[int, ...]:
        """Models of a bucket stack in any order."""
        return ()


ModelConfig = ViTConfig | ConvNetConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Config):
    """How a model is trained: AdamW with linear warm-up and cosine decay."""

    kind: ClassVar[str] = "train"
    # Each replica has a schedule of its own, and its own update.
    free_in_bucket: ClassVar[Mapping[str, Any]] = {
        "epochs": 1,
        "lr": 1.0,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "clip_norm": 1.0,
        "seeds": (0,),
    }
    later: ClassVar[frozenset[str]] = frozenset({"train_curves"})

    epochs: int = 8
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step and replica; a short last batch of an epoch is dropped."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decoupled weight decay, applied to weight matrices only."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up, before the cosine decay to zero."""
    label_smoothing: float = 0.1
    """Probability spread over all classes in the training loss."""
    clip_norm: float = 1.0
    """Largest norm of one replica's gradient; larger ones are scaled down to it."""
    translate: int = 2
    """Random translation of each training image, up to this many pixels each way."""
    flip: bool = False
    """Random horizontal flip of each training image."""
    precision: Precision = "auto"
    """Number format of the forward and backward pass; master weights are float32 or wider.
    `auto` takes bfloat16 where the device does it well."""
    seeds: tuple[int, ...] = (0,)
    """One replica is trained per seed: initialisation, data order, augmentation and dropout."""
    train_curves: bool = False
    """Measure training accuracy after each epoch, without and with translation and flip. It
    changes nothing of what is trained, and costs two evaluations of `ResidentData.probe`."""

    def _validate(self) -> None:
        for field in ("epochs", "batch_size"):
            self._require(getattr(self, field) >= 1, field, "at least 1")
        for field in ("lr", "clip_norm"):
            self._require(0.0 < getattr(self, field) < float("inf"), field, "a number above 0")
        for field in ("weight_decay", "warmup_epochs", "translate"):
            self._require(0 <= getattr(self, field) < float("inf"), field, "0 or more")
        self._require(0.0 <= self.label_smoothing < 1.0, "label_smoothing", "in [0, 1)")
        self._require(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds),
            "seeds",
            "one or more distinct numbers",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Config):
    """Which images, and which part of them."""

    kind: ClassVar[str] = "data"

    name: str = "cluttered-digits"
    """A name that `visweep.data.names()` lists."""
    data_dir: str | None = None
    """Where the files lie; a local matter, so no part of a study's identity."""
    image_size: int | None = None
    """Resize to this many pixels; the data set's own size when None."""
    train_size: int | None = None
    """Use this many training images, evenly over the classes; all of them when None."""
    split_seed: int = 0
    """Seed of the stratified split into training and validation images."""

    def _validate(self) -> None:
        for field in ("image_size", "train_size"):
            value = getattr(self, field)
            self._require(value is None or value >= 1, field, "at least 1")


_KINDS: dict[str, type[_Config]] = {
    config.kind: config for config in (ViTConfig, ConvNetConfig, TrainConfig, DataConfig)
}


def to_json(config: _Config) -> dict[str, Any]:
    """The configuration as JSON values, with its kind; without later fields at their default."""
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in config.later or value != getattr(type(config), name)
    }
    return {"kind": config.kind, **fields}


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_json` wrote, with the fields that it left out."""
    config = _KINDS.get(str(values.get("kind")), _Config)
    left_out = {name: getattr(config, name) for name in config.later if name not in values}
    return {**values, **left_out}


def from_json(values: Mapping[str, Any]) -> Any:
    """The configuration that `to_json` wrote; validated anew.

    Raises:
        UsageError: the kind or a field is unknown, or a value is invalid.
    """
    kind = str(values.get("kind", ""))
    if kind not in _KINDS:
        raise unknown_name("kind", kind, _KINDS)
    fields = {name: value for name, value in values.items() if name != "kind"}
    names = _field_types(_KINDS[kind])
    for name in fields:
        if name not in names:
            raise unknown_name(f"{kind} field", name, names)
    # JSON has no tuples, and no field is a list.
    return _KINDS[kind](
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
    )


_TYPES: dict[type[_Config], dict[str, Any]] = {}
"""What `_field_types` has found out: it takes longer than all else that is asked of a point."""


def _field_types(config: type[_Config]) -> dict[str, Any]:
    if config not in _TYPES:
        hints = typing.get_type_hints(config)
        _TYPES[config] = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    return _TYPES[config]


def _matches(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_matches(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        entry = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_matches(each, entry) for each in value)
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _described(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join(_described(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list, each entry {_described(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    return words.get(hint, "None")


def with_parameters(
    model: ModelConfig, train: TrainConfig, parameters: Mapping[str, Any]
) -> tuple[ModelConfig, TrainConfig]:
    """Put a trial's parameters into the configurations.

    A parameter is named after a field of the model, or else of the training; `field.0` is the
    first entry of a tuple field.

    Raises:
        UsageError: no field has that name, or the value is invalid.
    """
    model_fields, train_fields = _field_types(type(model)), _field_types(type(train))
    changes: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
    for name, value in parameters.items():
        field, dot, index = name.partition(".")
        if field not in model_fields and field not in train_fields:
            raise unknown_name("parameter", name, {*model_fields, *train_fields})
        part, owner = ("model", model) if field in model_fields else ("train", train)
        if dot:
            entries = changes[part].get(field, getattr(owner, field))
            if not isinstance(entries, tuple):
                raise UsageError(f"parameter: {name!r} names an entry, but {field} has none")
            if not index.isdecimal() or int(index) >= len(entries):
                raise UsageError(f"parameter: {name!r} names no entry of {field} {entries}")
            value = (*entries[: int(index)], value, *entries[int(index) + 1 :])
        changes[part][field] = value
    return model.replace(**changes["model"]), train.replace(**changes["train"])


def bucket_parameters(model: ModelConfig, train: TrainConfig, names: Iterable[str]) -> set[str]:
    """Which of these parameters decide the bucket of a trial."""
    free = {f for config in (model, train) for f in config.free_in_bucket}
    return {name for name in names if name.partition(".")[0] not in free}
