"""The yardstick: a sweep as a careful user writes it today, with torch, torchvision and Optuna.

    python benchmarks/conventional.py --data-dir /usr/share/datasets/fashion-mnist --trials 16
    python benchmarks/conventional.py --data-dir … --processes 2 --threads 1

After the examples of these projects: torchvision's Fashion-MNIST with a transform per image, a
`DataLoader`, models of plain torch.nn (rival.py) in fp32, torch's AdamW, validation after each
epoch, `study.optimize` in one process. What decides the result is as in visweep: images and their
division, augmentation, architecture, initialisation, schedule, clipping, label smoothing. How it
is computed is the conventional way, and the better number of loader processes is found by trying.

The first command runs a sweep of fixed trials of the `small` space of sweeps/vit_search.py. With
--processes the script trains the sweep's baseline instead, so many times at once, and prints
images per second: two processes of one thread make more of two cores than one of two.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import optuna
import torch
import torch.nn.functional as F
from lanes import Pace, together
from measuring import environment, print_table
from rival import build, parameter_groups
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision_images import KINDS, Images, data_loaders, divide, torchvision_root
from train_curves import random_point
from vit_search import SEARCH

from visweep.config import ModelConfig, TrainConfig, ViTConfig

TRAIN = SEARCH.train.replace(translate=2, flip=True)
"""How a trial is trained: as visweep does it, augmentation for clothes."""
SPACES = {
    "small": {"embed_dim": [32, 64, 96], "depth": (2, 6)},
    "report": {"embed_dim": [64, 96, 128, 184, 256], "depth": (4, 24)},
}
"""What the spaces of sweeps/vit_search.py differ in, for images of 32 pixels."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run is given.

    Attributes:
        device: that trains.
        threads: of the process that trains; None for torch's own choice, one per core.
        loaders: processes that prepare batches; 0 for none beside the one that trains.
    """

    device: str = "cpu"
    threads: int | None = None
    loaders: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one epoch took and gave; `accuracy` is that on the validation images."""

    accuracy: float
    images: int
    train_seconds: float
    val_seconds: float


@dataclass(frozen=True)
class Measured:
    """What one or several equal runs at once came to.

    Attributes:
        seconds: that a run took, validation included; of the slowest.
        images_per_second: of training, all runs together, without each one's first epoch.
        accuracy: mean over the runs after their last epoch.
    """

    seconds: float
    images_per_second: float
    accuracy: float


def schedule(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Fraction of the peak learning rate at each step: linear warm-up, cosine to zero."""
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    return factor


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    images: Images,
    machine: Machine,
    on_epoch: Callable[[Epoch], bool] | None = None,
) -> list[Epoch]:
    """Train one model with the first of the seeds; `on_epoch` returning True stops it there."""
    torch.manual_seed(config.seeds[0])
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    device = torch.device(machine.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as torch's tuning guide advises
    batches, val_batches = data_loaders(images, config, machine.loaders, machine.device)
    model = build(model_config).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(config, len(batches)))
    history: list[Epoch] = []
    while len(history) < config.epochs:
        began = time.perf_counter()
        train_epoch(model, batches, optimizer, scheduler, config)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        trained = time.perf_counter()
        accuracy = validate(model, val_batches)
        ended = time.perf_counter()
        seen = len(batches) * config.batch_size
        history.append(Epoch(accuracy, seen, trained - began, ended - trained))
        if on_epoch is not None and on_epoch(history[-1]):
            break
    return history


def train_epoch(
    model: nn.Module,
    batches: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    config: TrainConfig,
) -> None:
    """One pass over the training images; nothing in it waits for a GPU."""
    model.train()
    for images, labels in _on_device(model, batches):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        scheduler.step()


@torch.inference_mode()
def validate(model: nn.Module, batches: DataLoader) -> float:
    """Fraction of the validation images classified correctly."""
    model.eval()
    hits = [
        (model(images).argmax(1) == labels).sum() for images, labels in _on_device(model, batches)
    ]
    return int(torch.stack(hits).sum()) / len(batches.dataset)


def _on_device(model: nn.Module, batches: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for images, labels in batches:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def measure(
    model: ModelConfig,
    config: TrainConfig,
    images: Images,
    machine: Machine,
    processes: int = 1,
    seconds: float = math.inf,
) -> Measured:
    """Train a configuration in one process, or in several at once that each train their own.

    Args:
        model, config, images, machine: of each process; at least two epochs.
        processes: how many.
        seconds: after which a run is stopped early, its first epoch not counted.
    """
    runs = together(processes, _measured, model, config, images, machine, seconds)
    return Measured(
        seconds=max(run.seconds for run in runs),
        images_per_second=sum(run.images_per_second for run in runs),
        accuracy=sum(run.accuracy for run in runs) / len(runs),
    )


def _measured(
    model: ModelConfig, config: TrainConfig, images: Images, machine: Machine, seconds: float
) -> Measured:
    pace = Pace(seconds)
    history = train(model, config, images, machine, pace)
    took = sum(epoch.train_seconds + epoch.val_seconds for epoch in history)
    return Measured(took, pace.images_per_second, history[-1].accuracy)


def with_best_loaders(
    model: ModelConfig, config: TrainConfig, images: Images, machine: Machine, seconds: float
) -> Machine:
    """The machine with the number of loader processes that trains fastest, each tried once."""
    numbers = (0, 2, 8) if len(os.sched_getaffinity(0)) >= 8 else (0, 2)
    machines = [replace(machine, loaders=number) for number in numbers]
    return max(
        machines,
        key=lambda each: measure(model, config, images, each, seconds=seconds).images_per_second,
    )


def fixed_points(count: int, space: str = "small") -> list[dict[str, Any]]:
    """The first so many of an endless list of random points of a space."""
    return [random_point(index, space) for index in range(1, count + 1)]


def sweep(
    points: Sequence[Mapping[str, Any]],
    config: TrainConfig,
    images: Images,
    machine: Machine,
    space: str = "small",
) -> tuple[float, list[float]]:
    """Train these points as the trials of a study; returns the seconds and each one's accuracy."""
    channels = len(KINDS[images.kind].mean)

    def objective(trial: optuna.Trial) -> float:
        model = ViTConfig(
            in_chans=channels,
            drop=trial.suggest_float("drop", 0.0, 0.3),
            attn_drop=trial.suggest_float("attn_drop", 0.0, 0.3),
            patch_size=trial.suggest_categorical("patch_size", [4, 8, 16]),
            embed_dim=trial.suggest_categorical("embed_dim", SPACES[space]["embed_dim"]),
            depth=trial.suggest_int("depth", *SPACES[space]["depth"]),
            num_heads=trial.suggest_categorical("num_heads", [2, 4, 8]),
        )
        epochs: list[Epoch] = []

        def report(epoch: Epoch) -> bool:
            epochs.append(epoch)
            trial.report(epoch.accuracy, len(epochs))
            if trial.should_prune():
                raise optuna.TrialPruned
            return False

        return train(model, config, images, machine, report)[-1].accuracy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    began = time.perf_counter()
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    for point in points:
        study.enqueue_trial(dict(point))
    study.optimize(objective, n_trials=len(points))
    return time.perf_counter() - began, [trial.value for trial in study.trials]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--train-size", type=int, help="default: all training images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--processes", type=int, help="train the baseline so many times at once")
    parser.add_argument("--threads", type=int, help="of a process; default: torch's choice")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each try of the loaders")
    options = parser.parse_args()
    config = TRAIN.replace(epochs=options.epochs)
    machine = Machine(device=options.device, threads=options.threads)
    print(environment())
    with torchvision_root(options.data_dir) as root:
        images = divide(root, options.train_size)
        if options.processes is not None:
            found = measure(SEARCH.baseline, config, images, machine, options.processes)
            row = (options.processes, f"{found.seconds:.1f}", f"{found.images_per_second:,.0f}")
            print_table(
                ("processes", "seconds", "images/s", "accuracy"),
                [(*row, f"{100 * found.accuracy:.1f} %")],
            )
            return
        few = images.first(40 * config.batch_size, config.batch_size)
        machine = with_best_loaders(
            SEARCH.baseline, config.replace(epochs=1_000), few, machine, options.seconds
        )
        ((seconds, values),) = together(
            1, sweep, fixed_points(options.trials), config, images, machine
        )
    print_table(
        ("trials", "loaders", "seconds", "trials per hour", "mean accuracy", "best"),
        [
            (
                len(values),
                machine.loaders,
                f"{seconds:.1f}",
                f"{3600 * len(values) / seconds:.1f}",
                f"{100 * sum(values) / len(values):.2f} %",
                f"{100 * max(values):.2f} %",
            )
        ],
    )


if __name__ == "__main__":
    main()
