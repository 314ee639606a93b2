"""Does training take twice as long on twice as many images?

    python benchmarks/images.py --train-size 2000 8000 32000

Trains both default models for one epoch on so many images of Fashion-MNIST, on one thread, in
turns. Prints microseconds an image, evaluation apart: the median of the repetitions, with the
least and the most. Training grows linearly as long as the rows are alike.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import convnet_search
import vit_search
from measuring import environment, print_table

from visweep import DataConfig, fit, load
from visweep.data.resident import ResidentData, to_device
from visweep.search.recipe import Recipe

RECIPES = {"ViT": vit_search.SEARCH, "ConvNet": convnet_search.SEARCH}


def images_of(count: int, data_dir: str) -> tuple[ResidentData, dict[str, dict[str, object]]]:
    """So many training images, and what they demand of models and of their training."""
    dataset = load(DataConfig(name="fashion-mnist", data_dir=data_dir, train_size=count))
    data = to_device(dataset, torch.device("cpu"), dataset.train_fields["translate"])
    return data, {"model": dataset.model_fields, "train": dataset.train_fields}


def seconds(recipe: Recipe, data: ResidentData, fields: dict[str, dict[str, object]]) -> float:
    """An image's, in an epoch of training."""
    model = recipe.baseline.replace(**fields["model"])
    train = recipe.train.replace(epochs=1, **fields["train"])
    (epoch,) = fit(model, train, data).history
    return epoch.train_seconds / epoch.images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train-size", type=int, nargs="+", default=[2000, 8000, 32_000])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--data-dir", default="/usr/share/datasets/fashion-mnist")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(), flush=True)
    sets = {count: images_of(count, options.data_dir) for count in options.train_size}
    rows = []
    for name, recipe in RECIPES.items():
        seconds(recipe, *sets[min(sets)])  # what is compiled at first
        taken: dict[int, list[float]] = {count: [] for count in sets}
        for _ in range(options.repetitions):
            for count, made in sets.items():
                taken[count].append(seconds(recipe, *made))
        for count, found in taken.items():
            each = [1e6 * one for one in found]
            spread = f"{median(each):.0f} ({min(each):.0f}–{max(each):.0f})"
            rows.append((name, f"{count:,}", spread))
    print_table(("model", "images", "µs an image"), rows)


if __name__ == "__main__":
    main()
