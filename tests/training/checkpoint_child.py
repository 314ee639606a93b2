"""What the checkpoint tests run in processes of their own: `python checkpoint_child.py WHAT …`.

Each prints JSON.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from conftest import MODELS, TRAIN, make_quadrants
from visweep.training import checkpoint
from visweep.training.fit import fit
from visweep.training.results import EpochResult

CPU = torch.device("cpu")
IDENTITY = {"model": "one"}


def resume(folder: Path) -> list[Any]:
    """Finish every run whose checkpoint is `folder/MODEL.PRECISION.EPOCH`."""
    finished = []
    for path in sorted(folder.iterdir()):
        model, precision, _ = path.name.split(".")
        train = TRAIN.replace(precision=precision)
        result = fit(MODELS[model], train, make_quadrants(), checkpoint=path, device="cpu")
        torch.save(result.model.state_dict(), path.with_name(path.name + ".weights"))
        finished.append((path.name, [curve(r) for r in result.history], result.train_accuracy))
    return finished


def curve(result: EpochResult) -> list[Any]:
    """What of an epoch may not depend on an interruption: all but the seconds."""
    values = (result.epoch, result.train_loss, result.val_loss, result.val_accuracy, result.images)
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def write(path: Path, number: int) -> None:
    """A checkpoint of 8 MB, every entry of which is `number`."""
    tensors = {"values": torch.full((2**21,), float(number))}
    epoch = EpochResult(number, (0.5,), (0.5,), (0.5,), 1.0, 1.0, 10)
    checkpoint.write(path, IDENTITY, [epoch], tensors)


def read(path: Path) -> int:
    """The number of a checkpoint that `write` wrote, every entry checked."""
    (epoch,), tensors = checkpoint.read(path, IDENTITY, EpochResult, CPU)
    assert (tensors["values"] == epoch.epoch).all()
    return epoch.epoch


def killed(folder: Path) -> dict[str, list[Any]]:
    """Write one checkpoint after another in a process that is killed after a while.

    At least 12 times, and until a kill fell into the midst of a write.
    """
    path = folder / "run.checkpoint"
    write(path, 0)
    found, halves = [], []
    for attempt in range(100):
        if attempt >= 12 and any(size < path.stat().st_size for size in halves):
            break
        child = os.fork()
        if child == 0:
            number = 1000 * attempt
            while True:
                number += 1
                write(path, number)
        time.sleep(0.05 + 0.013 * (attempt % 12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found.append(read(path))
        for left in folder.glob(".*"):
            halves.append(left.stat().st_size)
            left.unlink()
    return {"found": found, "halves": halves, "whole": [path.stat().st_size]}


def full(folder: Path) -> dict[str, Any]:
    """Write a checkpoint that is larger than files may become here."""
    path = folder / "run.checkpoint"
    write(path, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    error = None
    try:
        write(path, 2)
    except OSError as raised:
        error = raised.strerror
    return {"error": error, "found": read(path), "files": [p.name for p in folder.iterdir()]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = {"resume": resume, "killed": killed, "full": full}[sys.argv[1]]
    print(json.dumps(what(Path(sys.argv[2]))))
