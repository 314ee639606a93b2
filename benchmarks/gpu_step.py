"""What a training step consists of: kernels, and the time between them.

    python benchmarks/gpu_step.py --device cuda

The conventional step (conventional.py, its batches on the device already), then visweep's, put
into the queue kernel by kernel and as a replayed graph. Torch's profiler tells when each kernel
began and ended; the seconds of a step are measured without it. With --device cpu operations take
the place of kernels, which shows that the script works.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import conventional
import torch
from conventional import TRAIN
from measuring import environment, print_table
from rival import build, parameter_groups
from sides import MODELS
from torch.profiler import ProfilerActivity, profile

from visweep.config import ModelConfig, TrainConfig
from visweep.data.resident import ResidentData
from visweep.training.cost import steps_as_in_an_epoch
from visweep.training.passes import Pass
from visweep.training.probe import synthetic

_BATCHES = 64
_WARM, _TIMED, _PROFILED = 10, 40, 10

Step = Callable[[], object]


def conventional_step(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Step:
    torch.set_float32_matmul_precision("high")
    module = build(model).to(data.device)
    optimizer = torch.optim.AdamW(parameter_groups(module, train.weight_decay), lr=train.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    images = data.normalise(data.train.images[: train.batch_size], torch.float32)
    batch = images, data.train.labels[: train.batch_size]
    return lambda: conventional.train_epoch(module, [batch], optimizer, scheduler, train)


def step_by_kernels(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Step:
    run = Pass.of(model, train, data)
    order = torch.arange(train.batch_size, device=data.device).expand(len(train.seeds), -1)
    run.model.train()
    return lambda: run.step([0], order)


def replayed_step(model: ModelConfig, train: TrainConfig, data: ResidentData) -> Step:
    steps = steps_as_in_an_epoch(Pass.of(model, train, data))
    return lambda: next(steps)


def measured(step: Step, device: torch.device) -> tuple[float, float, float, float]:
    """Of a step: kernels; microseconds that at least one of them runs, that none does between the
    first and the last, and in all."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(_WARM):
        step()
    wait()
    began = time.perf_counter()
    for _ in range(_TIMED):
        step()
    wait()
    whole = (time.perf_counter() - began) / _TIMED
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    found = []
    for _ in range(_PROFILED):
        with profile(activities=activities) as profiler:
            step()
            wait()
        found.append(_kernels(profiler, device))
    kernels, busy, idle = (median(values) for values in zip(*found, strict=True))
    return kernels, busy, idle, 1e6 * whole


def _kernels(profiler: profile, device: torch.device) -> tuple[float, float, float]:
    on_gpu = device.type == "cuda"
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if (event.device_type == torch.autograd.DeviceType.CUDA) == on_gpu
        and not event.cpu_children
        and not event.is_user_annotation
    )
    busy, reached = 0.0, spans[0][0]
    for began, ended in spans:
        busy += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return len(spans), busy, reached - spans[0][0] - busy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS)[:4])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1, help="replicas of visweep's step")
    options = parser.parse_args()
    device = torch.device(options.device)
    where = "" if device.type == "cpu" else f"; {torch.cuda.get_device_name(device)}"
    print(environment() + where, flush=True)
    train = TRAIN.replace(batch_size=options.batch_size, seeds=tuple(range(options.seeds)))
    sides = {
        "conventional": conventional_step,
        "visweep, kernel by kernel": step_by_kernels,
        "visweep, as an epoch repeats it": replayed_step,
    }
    rows = []
    for name in options.models:
        data = synthetic(MODELS[name], train, device, _BATCHES)
        for side, prepared in sides.items():
            kernels, *times = measured(prepared(MODELS[name], train, data), device)
            rows.append((name, side, f"{kernels:,.0f}", *(f"{us:,.0f}" for us in times)))
    headings = ("kernels", "busy, µs", "between kernels, µs", "a step, µs")
    print_table(("configuration", "side", *headings), rows)


if __name__ == "__main__":
    main()
