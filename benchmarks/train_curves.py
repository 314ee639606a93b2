"""Train random, unpruned points of the small ViT space: the table that search_quality.py replays.

    python benchmarks/train_curves.py cluttered-digits --points 100
    python benchmarks/train_curves.py fashion-mnist --points 60 --train-size 4000 --data-dir DIR

Appends a line per point to benchmarks/curves/NAME.jsonl and goes on where it stopped. One thread:
on two cores run it twice at once, with --share 1/2 and --share 2/2; about 30 s a point.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

from vit_search import SEARCH, small

from visweep import DataConfig, fit, load
from visweep.config import with_parameters
from visweep.search.spaces import corners

FOLDER = Path(__file__).parent / "curves"


def random_point(index: int, space: str = "small") -> dict[str, float | int]:
    """Point `index` of an endless list of random points of a space."""
    rng = np.random.default_rng([2026, index])
    within = SEARCH.spaces[space](32)
    discrete = [p for p in corners(within) if p["drop"] == 0.0 and p["attn_drop"] == 0.0]
    depth = within["depth"]
    point = discrete[rng.integers(len(discrete))]
    return {
        **point,
        "depth": int(rng.integers(depth.low, depth.high + 1)),
        "drop": float(rng.uniform(0.0, 0.3)),
        "attn_drop": float(rng.uniform(0.0, 0.3)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--train-size", type=int)
    parser.add_argument("--data-dir")
    parser.add_argument("--share", default="1/1", help="train every n-th point: i/n")
    options = parser.parse_args()
    first, step = (int(part) for part in options.share.split("/"))
    torch.set_num_threads(1)
    dataset = load(
        DataConfig(name=options.dataset, data_dir=options.data_dir, train_size=options.train_size)
    )
    path = FOLDER / f"{options.dataset}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["index"] for line in lines}
    for index in range(first - 1, options.points, step):
        if index in done:
            continue
        # The baseline comes first, as it does in a sweep.
        point = _baseline() if index == 0 else random_point(index)
        model, train = with_parameters(
            SEARCH.baseline.replace(**dataset.model_fields),
            SEARCH.train.replace(flip=dataset.may_flip),
            point,
        )
        result = fit(model, train, dataset, device="cpu")
        row = {
            "index": index,
            "point": point,
            "accuracy": [round(r.mean_val_accuracy, 5) for r in result.history],
            "seconds": round(result.seconds, 2),
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(index, row, flush=True)


def _baseline() -> dict[str, float | int]:
    return {name: getattr(SEARCH.baseline, name) for name in small(32)}


if __name__ == "__main__":
    main()
