"""How much of a sweep's wall time is spent outside the trainer?

    python benchmarks/overhead.py --trials 50

Runs the default sweep in a fresh storage, as the script does, and times from opening the storage
to its last word: sampler, storage, pruner, checkpoint thinning and live view are all that is not
`fit` itself. Time that `fit` spends in its callback counts as outside.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

from rich.console import Console
from vit_search import SEARCH

from visweep.cli.prepare import prepare
from visweep.cli.search import search_until_done
from visweep.cli.sweep import SweepOptions
from visweep.config import DataConfig
from visweep.search import trainer
from visweep.training.fit import fit
from visweep.training.results import EpochResult, FitResult


class Stopwatch:
    """Stands in for `fit` and adds up what it took, its callback apart."""

    def __init__(self) -> None:
        self.trainer = 0.0

    def __call__(self, *arguments: Any, on_epoch: Any, **named: Any) -> FitResult:
        outside = 0.0

        def timed(result: EpochResult) -> bool:
            nonlocal outside
            began = time.perf_counter()
            stop = on_epoch(result)
            outside += time.perf_counter() - began
            return bool(stop)

        began = time.perf_counter()
        try:
            return fit(*arguments, on_epoch=timed, **named)
        finally:
            self.trainer += time.perf_counter() - began - outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--storage", help="keep the study here")
    options = parser.parse_args()
    stopwatch = trainer.fit = Stopwatch()  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        url = options.storage or f"sqlite:///{folder}/studies.db"
        asked = SweepOptions(
            trials=options.trials,
            study=None,
            storage=url,
            data=DataConfig(),
            train=SEARCH.train,
            space="small",
            seeds=1,
            device="auto",
            workers=1,
            sampler="tpe",
            pruner="halving",
            timeout=None,
            seed=0,
        )
        prepared = prepare(SEARCH, asked)
        began = time.perf_counter()
        search_until_done(Console(), prepared, "")
        wall = time.perf_counter() - began
    share = 1 - stopwatch.trainer / wall
    print(f"wall {wall:.1f} s, trainer {stopwatch.trainer:.1f} s: {100 * share:.2f} % outside it")


if __name__ == "__main__":
    main()
