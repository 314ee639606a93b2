"""A worker in a process that may take 300 MiB more: `python memory_child.py DATABASE TRIALS`."""

import resource
import sys
from pathlib import Path

import optuna
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution

from visweep import data as datasets
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.data.resident import to_device
from visweep.search.interrupt import Interrupt
from visweep.search.study import open_study
from visweep.search.trainer import SharedTrainer
from visweep.search.watch import Watcher
from visweep.search.worker import Worker
from visweep.storage.opening import open_storage
from visweep.storage.specification import Specification
from visweep.training.fit import fit

ROOM = 300 * 2**20
IMAGES = DataConfig(train_size=128)
# 4096 wide, it takes 800 MB of weights; with patches of 2 and 8 heads, 134 MB of each attention.
SPACE = {
    "embed_dim": CategoricalDistribution([8, 4096]),
    "patch_size": CategoricalDistribution([2, 16]),
    "drop": FloatDistribution(0.0, 0.3),
}
MODEL = ViTConfig(patch_size=16, embed_dim=8, depth=1, num_heads=8)
TRAIN = TrainConfig(epochs=1, precision="float32")


def main() -> None:
    database, trials = sys.argv[1:]
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = to_device(datasets.load(IMAGES), torch.device("cpu"))
    specification = Specification(
        space=SPACE,
        data=IMAGES,
        fingerprint=data.dataset.fingerprint,
        model=MODEL,
        train=TRAIN,
        sampler="tpe",
        pruner="none",
        seed=0,
    )
    storage = open_storage(f"sqlite:///{database}")
    opened = open_study(storage, "study", specification, int(trials))
    for point in (*[{"embed_dim": 4096}] * 4, {"embed_dim": 8, "patch_size": 2}):
        opened.study.enqueue_trial(point, skip_if_exists=False)
    # What the first run of a process loads is no matter of its size.
    fit(MODEL, TRAIN, data)
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    held = next(1024 * int(words[1]) for words in lines if words[0] == "VmData:")
    resource.setrlimit(resource.RLIMIT_DATA, (held + ROOM, resource.RLIM_INFINITY))
    Worker(opened, SharedTrainer(data), Watcher(), Interrupt()).run()
    storage.close()


if __name__ == "__main__":
    main()
