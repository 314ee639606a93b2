"""What throughput.py measures: visweep's side, the conventional one, and the device itself."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import conventional
import generated_images
import optuna
import torch
from conventional import TRAIN, Machine, measure, with_best_loaders
from lanes import Pace, together, wait_for_all
from rich.console import Console
from torchvision_images import KINDS, Images, divide
from vit_search import SEARCH

from visweep.cli.prepare import prepare_on
from visweep.cli.search import search_until_done
from visweep.cli.sweep import SweepOptions
from visweep.config import ConvNetConfig, DataConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data import load
from visweep.data.dataset import Dataset, Split
from visweep.data.resident import to_device
from visweep.search.mps import Mps
from visweep.training.counts import multiply_adds
from visweep.training.device import resolve_device
from visweep.training.fit import fit
from visweep.training.passes import Member
from visweep.training.resolve import device_name, precision_on
from visweep.training.rounds import Rounds
from visweep.training.run import Run

_T = TypeVar("_T")

DROP = {"drop": 0.1, "attn_drop": 0.1}
MODELS: dict[str, ModelConfig] = {
    "ViT(64, 6, patch 16)": ViTConfig(embed_dim=64, depth=6, patch_size=16, **DROP),
    "ViT(128, 16, patch 16)": ViTConfig(embed_dim=128, depth=16, patch_size=16, **DROP),
    "ViT(128, 16, patch 4)": ViTConfig(embed_dim=128, depth=16, patch_size=4, **DROP),
    "ConvNet": ConvNetConfig(widths=(16, 32, 64), depths=(1, 1, 1)),
    "ViT(96, 6, patch 8)": ViTConfig(embed_dim=96, depth=6, patch_size=8, num_heads=8, **DROP),
}
"""What ViT(width, depth, patch) and ConvNet mean here; 4 heads, 8 in the last one."""
_FEW = 64  # validation images where only speed is measured
_GUESSED_SPEED = {"cpu": 1e10, "cuda": 5e11}  # operations per second; sets an epoch's length
_MOST_STEPS = 400


@dataclass(frozen=True)
class Bench:
    """What is common to all measurements of a run; fields are named after the options.

    Attributes:
        dataset: which images; of `torchvision_images.KINDS`.
        root: folder of the images, as torchvision wants it.
        data_dir, device, workers, repetitions, seconds, batch_size: see `--help`.
    """

    dataset: str
    root: Path
    data_dir: Path
    device: str
    workers: int
    repetitions: int
    seconds: float
    batch_size: int

    @property
    def threads(self) -> int:
        """Of each of several processes."""
        return max(1, len(os.sched_getaffinity(0)) // self.workers)

    @property
    def precision(self) -> str:
        """The number format that visweep trains in here."""
        return precision_on(self.device, "auto")

    @property
    def fields(self) -> dict[str, int]:
        """Of a model for these images."""
        return {"in_chans": len(KINDS[self.dataset].mean)}

    def images(self, train_size: int | None = None) -> Images:
        """As the conventional side reads them."""
        return divide(self.root, train_size, self.dataset)

    def loaded(self, train_size: int | None = None) -> Dataset:
        """As visweep reads them."""
        if self.dataset == "cifar-shaped":
            images = self.images(train_size)
            return generated_images.dataset(images.root, images.train, images.val)
        return load(self.data_config(train_size))

    def data_config(self, train_size: int | None = None) -> DataConfig:
        """What visweep is asked for."""
        is_published = self.dataset == "fashion-mnist"
        folder = str(self.data_dir) if is_published else None
        return DataConfig(name=self.dataset, data_dir=folder, train_size=train_size)

    def in_turns(self, sides: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """What each side came to in each repetition."""
        found: dict[str, list[Any]] = {name: [] for name in sides}
        for _, name, outcome in self.turns(sides):
            found[name].append(outcome)
        return found

    def turns(self, sides: Mapping[str, Callable[[], _T]]) -> Iterator[tuple[int, str, _T]]:
        """Which repetition it is, from 1, of which side, and what it came to."""
        for turn in range(1, self.repetitions + 1):
            for name, side in sides.items():
                yield turn, name, side()


@dataclass(frozen=True)
class Case:
    """One configuration whose images per second are measured, the same on both sides."""

    bench: Bench
    model: ModelConfig

    @property
    def train(self) -> TrainConfig:
        return TRAIN.replace(batch_size=self.bench.batch_size, epochs=1_000)

    @property
    def operations(self) -> int:
        """Of training on one image: a forward pass, and twice as many for the gradients."""
        return 3 * 2 * multiply_adds(self.model)

    @property
    def sizes(self) -> tuple[int, int]:
        """Training and validation images: an epoch takes about half of the time to be timed."""
        speed = _GUESSED_SPEED[self.bench.device.partition(":")[0]]
        batch = self.operations * self.bench.batch_size
        steps = round(self.bench.seconds / 2 * speed / batch)
        return min(max(steps, 1), _MOST_STEPS) * self.bench.batch_size, _FEW

    @cached_property
    def images(self) -> Images:
        return self.bench.images().first(*self.sizes)

    @cached_property
    def ours_first(self) -> Dataset:
        """The same ones, as visweep has them."""
        return _first(self.bench.loaded(), *self.sizes)

    def loaders(self) -> int:
        """As many as are best for the conventional side in one process."""
        machine = Machine(device=self.bench.device)
        return with_best_loaders(
            self.model, self.train, self.images, machine, self.bench.seconds
        ).loaders

    def conventional(self, machine: Machine, processes: int) -> float:
        """Images per second."""
        return measure(
            self.model, self.train, self.images, machine, processes, self.bench.seconds
        ).images_per_second

    def ours(self, replicas: int = 1) -> float:
        """Images per second of all workers together, each with a run of its own."""
        bench = self.bench
        train = self.train.replace(seeds=tuple(range(replicas)))
        arguments = (
            self.model,
            train,
            self.ours_first,
            bench.device,
            bench.threads,
            bench.seconds,
        )
        return sum(together(bench.workers, _our_rate, *arguments, as_worker=True))

    def processes(self, count: int, mps: Mps) -> float:
        """Images per second of so many processes, each with a run of its own; validation takes
        its time, too, as it does in lanes."""
        served = dict(mps.environment or {}) if count > 1 else {}
        arguments = served, *self._alone(count)
        return sum(together(count, _served_rate, *arguments, as_worker=True))

    def lanes(self, count: int) -> float:
        """Images per second of so many lanes of one process, each with a run of its own."""
        return float(together(1, _lanes_rate, *self._alone(1), count, as_worker=True)[0])

    def _alone(self, processes: int) -> tuple[Any, ...]:
        bench = self.bench
        threads = max(1, bench.workers * bench.threads // processes)
        return self.model, self.train, self.ours_first, bench.device, threads, bench.seconds

    def peak(self) -> float:
        """Operations per second of matrix products, in the number format that we train in."""
        bench = self.bench
        processes = bench.workers if bench.device == "cpu" else 1
        return sum(together(processes, _matmul_rate, bench.device, bench.threads, bench.precision))


@cache
def _loaded(bench: Bench, train_size: int | None) -> Dataset:
    return bench.loaded(train_size)


def _first(dataset: Dataset, train: int, val: int) -> Dataset:
    def cut(split: Split, count: int) -> Split:
        return Split(split.images[:count], split.labels[:count])

    return replace(dataset, train=cut(dataset.train, train), val=cut(dataset.val, val))


def _our_rate(*arguments: Any) -> float:
    return _paced(*arguments).images_per_second


def _served_rate(environment: Mapping[str, str], *arguments: Any) -> float:
    os.environ.update(environment)
    return _paced(*arguments).images_per_second_in_all


def _paced(
    model: ModelConfig,
    train: TrainConfig,
    data: Dataset,
    device: str,
    threads: int,
    seconds: float,
) -> Pace:
    torch.set_num_threads(threads)
    pace = Pace(seconds)
    fit(model, train, data, on_epoch=pace, device=device)
    return pace


def _lanes_rate(
    model: ModelConfig,
    train: TrainConfig,
    data: Dataset,
    device: str,
    threads: int,
    seconds: float,
    lanes: int,
) -> float:
    torch.set_num_threads(threads)
    resident = to_device(data, resolve_device(device), train.translate)
    rounds = Rounds(resident, at_once=True)
    for lane in range(lanes):
        # By ever so little different, so that they share no pass.
        own = train.replace(label_smoothing=train.label_smoothing + lane * 1e-9)
        rounds.join(Run(Member(model, own), resident))
    images, began, warm = 0, 0.0, 2 * lanes
    for number in itertools.count():
        if number == warm:  # what is captured is so by then
            images, began = 0, time.perf_counter()
        # Equal lanes end their epochs one right after the other: only whole lots are counted.
        elif number > warm and number % lanes == 0 and time.perf_counter() - began >= seconds:
            break
        for turn in rounds.round():
            turn.take()
            images += turn.run.history[-1].images
    return images / (time.perf_counter() - began)


def _matmul_rate(device: str, threads: int, precision: str, seconds: float = 1.0) -> float:
    torch.set_num_threads(threads)
    size = 2_048 if device == "cpu" else 8_192
    matrix = torch.randn(size, size, device=device).to(getattr(torch, precision))
    product = matrix @ matrix
    wait_for_all()
    count, began, ended = 0, time.perf_counter(), 0.0
    while ended - began < seconds:
        torch.mm(matrix, matrix, out=product)
        if device != "cpu":
            torch.cuda.synchronize(device)
        count, ended = count + 1, time.perf_counter()
    return 2 * size**3 * count / (ended - began)


@dataclass(frozen=True)
class Sweep:
    """A search of fixed trials.

    Attributes:
        points: what is trained, one after the other.
        space, epochs, train_size, pack: see `--help`.
        workers: None for as many as visweep chooses.
    """

    points: Sequence[Mapping[str, Any]]
    space: str
    epochs: int
    train_size: int | None
    workers: int | None
    pack: int


def our_sweep(bench: Bench, sweep: Sweep) -> tuple[float, list[float]]:
    """The seconds that a search takes for these trials, and each one's accuracy.

    Raises:
        RuntimeError: not just these trials were completed.
    """
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        asked = SweepOptions(
            trials=len(sweep.points),
            study="fixed",
            storage=url,
            artifacts=None,
            data=bench.data_config(sweep.train_size),
            train=TRAIN.replace(epochs=sweep.epochs),
            space=sweep.space,
            seeds=1,
            device=bench.device,
            workers=sweep.workers,
            pack=sweep.pack,
            sampler="random",
            pruner="none",
            duplicates="replicate",
            timeout=None,
            seed=0,
        )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        began = time.perf_counter()
        study = optuna.create_study(study_name="fixed", storage=url, direction="maximize")
        for point in sweep.points:
            study.enqueue_trial(dict(point))
        images = bench.loaded(sweep.train_size)
        prepared = prepare_on(images, SEARCH, asked, device_name(bench.device))
        search_until_done(Console(file=io.StringIO()), prepared, "")
        seconds = time.perf_counter() - began
        trials = optuna.load_study(study_name="fixed", storage=url).trials
    states = [trial.state.name for trial in trials]
    if states != ["COMPLETE"] * len(sweep.points):
        raise RuntimeError(f"trials that should be {len(sweep.points)} complete ones: {states}")
    return seconds, [trial.value for trial in trials]


def our_accuracy(
    model: ModelConfig, train: TrainConfig, bench: Bench, train_size: int | None
) -> float:
    """Of visweep after its last epoch, with the first of the seeds."""
    torch.set_num_threads(bench.threads)
    result = fit(model, train, _loaded(bench, train_size), device=bench.device)
    return result.history[-1].mean_val_accuracy


def their_accuracy(
    model: ModelConfig, train: TrainConfig, images: Images, machine: Machine
) -> float:
    """Of the conventional side."""
    return conventional.train(model, train, images, machine)[-1].accuracy
