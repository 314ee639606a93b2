"""What `--train-curves` costs: runs of both default models with and without it, taking turns.

    python benchmarks/training_accuracy.py --repetitions 3 --epochs 2

Processor time of one thread, so that what else runs on the machine counts little. A run evaluates
training images once in the end in any case, so one of E epochs costs 2 E - 1 evaluations more.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import convnet_search
import vit_search
from measuring import environment, print_table

from visweep import DataConfig, fit, load
from visweep.data.resident import to_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-size", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = load(DataConfig(name="cluttered-digits", train_size=options.train_size))
    data = to_device(dataset, torch.device("cpu"), dataset.train_fields["translate"])
    rows = []
    for name, recipe in (("ViT", vit_search.SEARCH), ("ConvNet", convnet_search.SEARCH)):
        model = recipe.baseline.replace(**dataset.model_fields)
        train = recipe.train.replace(epochs=options.epochs, **dataset.train_fields)
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(options.repetitions):
            for wanted in taken:
                started = time.process_time()
                fit(model, train.replace(train_curves=wanted), data)
                taken[wanted].append(time.process_time() - started)
        ratios = [after / before for before, after in zip(*taken.values(), strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        seconds = (f"{median(values) / options.epochs:.2f}" for values in taken.values())
        rows.append((name, *seconds, spread))
    print(environment())
    print(f"{len(data.train):,} images for training, {len(data.val):,} for validation")
    print_table(("model", "seconds an epoch", "with training curves", "ratio"), rows)


if __name__ == "__main__":
    main()
