"""What a study is: stored in it when it is created, and compared when it is resumed.

Its identity must be the same on every machine that works on the study. Its provenance tells who
ran a trial with what; it is recorded and never compared.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from visweep.config import (
    DataConfig,
    ModelConfig,
    Precision,
    TrainConfig,
    completed,
    from_json,
    to_json,
    with_parameters,
)
from visweep.errors import SpecificationMismatch, unknown_name
from visweep.storage.limits import NO_LIMITS, Limits, option

SPECIFICATION = "visweep:specification"
BUDGET = "visweep:budget"
STUDY_ID = "visweep:id"
BRANCH = "visweep:branch"
ARTIFACTS = "visweep:artifacts"
TRAINER = "visweep:trainer"
"""Keys of a study's user attributes. The branch is that of a copy that may go its own way; the
artifacts lie in a place of the user's, if this says so; the trainer is the version of it that the
study was begun with, which those of older versions do not say."""

OF = "visweep:of"
"""User attribute of a study that was made of another one, see `made_of`."""

RACE, DROPPED, TEST = "visweep:race", "visweep:dropped", "visweep:test"
"""User attributes of a study that races: between what and by which seeds, the arms that take part
no longer, and what the one that was chosen reached on the test images."""

TAKING_PART = "visweep:taking-part"
"""User attribute of a study of arms that grows: those that take part so far, where not all do. Of
two copies that are merged the longer list stands, so that who takes part stays."""

ARM, SEED = "arm", "seed"
"""The parameters of a study of arms: the name of one, and the seed that it is trained with."""

Space = Mapping[str, BaseDistribution]

DEFAULT_DUPLICATES = "replicate"
"""The default of `--duplicates`, under which studies go on that were begun before it was there."""

_PACKAGES = ("visweep", "torch", "torchvision", "optuna", "sqlalchemy", "numpy")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the configurations that a study compares, each trained with the same seeds.

    Attributes:
        model: what is trained.
        train: how; the seeds in it are replaced by a trial's own.
        against: name of the arm that it is a change of; None for one that others are compared
            with.
    """

    model: ModelConfig
    train: TrainConfig
    against: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        described = {"model": to_json(self.model), "train": to_json(self.train)}
        return {**described, "against": self.against}

    @property
    def seedless(self) -> Arm:
        """Its configuration alone, equal for arms that differ in nothing but seeds."""
        return Arm(model=self.model, train=self.train.replace(seeds=(0,)))

    def differences(self, other: Arm) -> dict[str, tuple[Any, Any]]:
        """The fields in which this arm differs from another: what stands there, and what here."""
        found = {}
        for there, here in ((other.model, self.model), (other.train, self.train)):
            for name in {**to_json(there), **to_json(here)}:
                pair = getattr(there, name, None), getattr(here, name, None)
                if pair[0] != pair[1]:
                    found[name] = pair
        return found

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Arm:
        """The arm that `to_json` wrote."""
        model, train = from_json(values["model"]), from_json(values["train"])
        return cls(model=model, train=train, against=values["against"])


@dataclass(frozen=True)
class Specification:
    """The identity of a study.

    Attributes:
        space: what is searched; names of configuration fields to Optuna distributions.
        data: which images; `data_dir` is local and left out.
        fingerprint: of the images' content.
        model: the baseline; a trial replaces the fields that the space names.
        train: how each trial is trained, its precision resolved.
        sampler: name of the sampler.
        pruner: name of the pruner.
        seed: of the study; every proposal follows from it and the history.
        duplicates: what becomes of a proposal that was tried already. It decides what trials the
            study has and with which seeds they are trained, as the sampler does.
        limits: what no trial may exceed.
        arms: what is compared, by name, in a study of arms. Its space is that of `ARM` and
            `SEED`, and `model` and `train` are those of the first arm.
    """

    space: Space
    data: DataConfig
    fingerprint: str
    model: ModelConfig
    train: TrainConfig
    sampler: str
    pruner: str
    seed: int
    duplicates: str = DEFAULT_DUPLICATES
    limits: Limits = NO_LIMITS
    arms: Mapping[str, Arm] = field(default_factory=dict)

    def configurations(self, parameters: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
        """What a trial of these parameters trains, and how.

        Raises:
            UsageError: a name or a value is not accepted.
        """
        if not self.arms:
            return with_parameters(self.model, self.train, parameters)
        name = parameters[ARM]
        if name not in self.arms:
            raise unknown_name(ARM, str(name), self.arms)
        arm = self.arms[name]
        return arm.model, arm.train.replace(seeds=(parameters[SEED],))

    @property
    def most_translation(self) -> int:
        """By how many pixels an image may be moved, in any trial."""
        values = [self.train.translate, *(arm.train.translate for arm in self.arms.values())]
        distribution = self.space.get("translate")
        if isinstance(distribution, CategoricalDistribution):
            values += [int(choice) for choice in distribution.choices]  # type: ignore[arg-type]
        elif isinstance(distribution, IntDistribution):
            values.append(distribution.high)
        return max(values)

    def in_precision(self, precision: Precision) -> Specification:
        """The same, trained in this number format."""
        arms = {
            name: replace(arm, train=arm.train.replace(precision=precision))
            for name, arm in self.arms.items()
        }
        return replace(self, train=self.train.replace(precision=precision), arms=arms)

    def identity(self) -> dict[str, Any]:
        """As JSON values."""
        data = to_json(self.data)
        del data["data_dir"]
        return {
            "space": {name: distribution_to_json(d) for name, d in self.space.items()},
            "data": {**data, "fingerprint": self.fingerprint},
            "model": to_json(self.model),
            "train": to_json(self.train),
            "sampler": {"name": self.sampler},
            "pruner": {"name": self.pruner},
            "seed": self.seed,
            "duplicates": self.duplicates,
            # Left out where there are none: older versions then read it, too.
            **({"limits": limits} if (limits := self.limits.given()) else {}),
            **({"arms": self._arms()} if self.arms else {}),
        }

    def stored(self) -> dict[str, Any]:
        """What a study keeps of it, as JSON values: its identity, and who judges its limits."""
        judge = self.limits.judge
        return {"identity": self.identity(), **({} if judge is None else {"judge": judge})}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Specification:
        """The specification that `stored` described."""
        found = cls.from_identity(stored["identity"])
        return replace(found, limits=found.limits.with_judge(stored.get("judge")))

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> Specification:
        """The specification that `identity` described."""
        data = dict(identity["data"])
        fingerprint = data.pop("fingerprint")
        return cls(
            space={n: json_to_distribution(text) for n, text in identity["space"].items()},
            data=from_json(data),
            fingerprint=fingerprint,
            model=from_json(identity["model"]),
            train=from_json(identity["train"]),
            sampler=identity["sampler"]["name"],
            pruner=identity["pruner"]["name"],
            seed=identity["seed"],
            duplicates=_completed(identity)["duplicates"],
            limits=Limits(**identity.get("limits", {})),
            arms={n: Arm.from_json(arm) for n, arm in identity.get("arms", {}).items()},
        )

    def taking_part(self, attributes: Mapping[str, Any]) -> dict[str, Arm]:
        """The arms that are trained in a study with such user attributes."""
        names = set(attributes.get(TAKING_PART, self.arms)) - set(attributes.get(DROPPED, ()))
        return {name: arm for name, arm in self.arms.items() if name in names}

    def _arms(self) -> dict[str, Any]:
        return {name: arm.to_json() for name, arm in self.arms.items()}

    def baseline(self) -> dict[str, Any]:
        """The baseline configuration as a point of the space."""
        if self.arms:
            distribution = self.space[SEED]
            assert isinstance(distribution, IntDistribution)
            return {ARM: next(iter(self.arms)), SEED: distribution.low}
        return {name: self._field(name) for name in self.space}

    def _field(self, name: str) -> Any:
        field, _, index = name.partition(".")
        owner = self.model if hasattr(self.model, field) else self.train
        value = getattr(owner, field)
        return value[int(index)] if index else value


def made_of(study: str, identifier: str | None, kind: str) -> dict[str, Any]:
    """What a study keeps under `OF`, that is made of another one.

    Args:
        study: name of the other one.
        identifier: its `STUDY_ID`, which tells it from one of the same name that was deleted.
        kind: what it is made for, such as `race`.
    """
    known = {} if identifier is None else {"id": identifier}
    return {"study": study, "kind": kind, **known}


def is_made_of(
    attributes: Mapping[str, Any], study: str, identifier: str | None, kind: str
) -> bool:
    """Whether a study with these user attributes was made of another one, as `made_of` says."""
    return attributes.get(OF) == made_of(study, identifier, kind)


def require_same(
    study: str, stored: Mapping[str, Any], wanted: Specification, option: str = "--study"
) -> None:
    """See that a study is resumed as what it was created; errors name the option that names it.

    Raises:
        SpecificationMismatch: with the first field that differs and both its values.
    """
    differing = difference(stored, wanted.identity(), "was", "now")
    if differing is not None:
        raise SpecificationMismatch(
            f"study {study!r}: {differing}; start another one with {option} NAME"
        )


def difference(
    one: Mapping[str, Any], other: Mapping[str, Any], here: str, there: str
) -> str | None:
    """The first field in which two identities differ, with both its values; None if in none.

    Args:
        here: a word before the value of the one, such as "was".
        there: a word before the value of the other, such as "now".
    """
    before, now = dict(_leaves(_completed(one))), dict(_leaves(_completed(other)))
    differing = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if not differing:
        return None
    # A changed fingerprint follows from changed options, so any other field explains more.
    name = next((n for n in differing if n != "data.fingerprint"), differing[0])
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    if name == "data.fingerprint":
        return (
            f"the content of the data changed since it began (fingerprint {before[name][:12]}, "
            f"now {now[name][:12]})"
        )
    values = f"{here} {_told(before.get(name))}, {there} {_told(now.get(name))}"
    return f"{_shown(name)} {values}{more}"


def _told(value: Any) -> str:
    return "not given" if value is None else repr(value)


def _shown(name: str) -> str:
    """A limit is known by its option."""
    part, _, field = name.partition(".")
    return option(field) if part == "limits" else name


def _completed(identity: Mapping[str, Any]) -> Mapping[str, Any]:
    """An identity with what those of older versions do not say."""
    model = completed(identity["model"])
    train = completed(identity["train"])
    arms = {
        name: {**arm, "model": completed(arm["model"]), "train": completed(arm["train"])}
        for name, arm in identity.get("arms", {}).items()
    }
    said = {"duplicates": DEFAULT_DUPLICATES, **identity, "model": model, "train": train}
    return {**said, "arms": arms} if arms else said


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def provenance(
    device: str,
    data_dir: str | None = None,
    threads: int = 1,
    trainer: int | None = None,
    hardware: str | None = None,
) -> dict[str, Any]:
    """Where and with what a trial is run; JSON values.

    Args:
        device: that trains.
        data_dir: folder of the images, where one was given.
        threads: of the training process; on the CPU its sums are rounded by their number.
        trainer: the version of it, which decides what is drawn.
        hardware: the name of the GPU or of the processor.
    """
    return {
        "versions": {name: _version(name) for name in _PACKAGES},
        **({} if trainer is None else {"trainer": trainer}),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "host": platform.node(),
        "device": device,
        **({} if hardware is None else {"hardware": hardware}),
        "threads": threads,
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str | None:
    """The commit of our own source, where it is a git checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
