"""Does a search find better models per hour when trials share passes?

    python benchmarks/packing.py --seconds 60 --repetitions 5
    python benchmarks/packing.py --device cuda --pack 8 --seconds 300

Runs the ViT search in turns without and with `--pack`, for equally long, each pair with a study
seed of its own. Prints what each side found and did: the best validation accuracy of a completed
trial, trials finished, epochs trained. Then the mean difference of the best accuracies, packed
minus not, with a 95 % interval (Student's t over the pairs). A search that completes no trial has
found nothing, which counts as an accuracy of zero.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

import optuna
from measuring import environment, print_table
from optuna.trial import TrialState
from scipy import stats

SCRIPT = Path(__file__).parents[1] / "sweeps" / "vit_search.py"


@dataclass(frozen=True)
class Found:
    """What a search came to; accuracy in %."""

    accuracy: float
    finished: int
    epochs: int


def main() -> None:
    options = _options()
    print(environment())
    sides: dict[int, list[Found]] = {1: [], options.pack: []}
    for seed in range(options.repetitions):
        for pack, found in sides.items():
            found.append(search(pack, seed, options))
            print(f"seed {seed}, --pack {pack}: {found[-1]}", file=sys.stderr)
    rows = [
        (
            f"--pack {pack}",
            f"{fmean(f.accuracy for f in found):.1f} ({_all(f.accuracy for f in found)})",
            median(f.finished for f in found),
            median(f.epochs for f in found),
        )
        for pack, found in sides.items()
    ]
    headings = ("side", "best accuracy, %: mean (all)", "trials finished", "epochs trained")
    print_table(headings, rows)
    pairs = zip(sides[options.pack], sides[1], strict=True)
    print(_told([packed.accuracy - plain.accuracy for packed, plain in pairs]))


def search(pack: int, seed: int, options: argparse.Namespace) -> Found:
    """One search of so many seconds, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        arguments = {
            "--trials": 10_000,
            "--study": "search",
            "--storage": url,
            "--seed": seed,
            "--pack": pack,
            "--device": options.device,
            "--workers": options.workers,
            "--timeout": f"{options.seconds}s",
            **({"--train-size": options.train_size} if options.train_size else {}),
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        subprocess.run([sys.executable, SCRIPT, *words], check=True, stdout=subprocess.DEVNULL)
        trials = optuna.load_study(study_name="search", storage=url).trials
    complete = [100 * t.value for t in trials if t.state == TrialState.COMPLETE and t.value]
    return Found(
        accuracy=max(complete, default=0.0),
        finished=sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials),
        epochs=sum(len(t.intermediate_values) for t in trials),
    )


def _all(values: object) -> str:
    return ", ".join(f"{value:.1f}" for value in values)  # type: ignore[attr-defined]


def _told(differences: list[float]) -> str:
    mean = fmean(differences)
    if len(differences) < 2:
        return f"difference: {mean:+.1f} points, of one pair"
    half = stats.t.ppf(0.975, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    return f"difference: {mean:+.1f} points, 95 % {mean - half:+.1f} to {mean + half:+.1f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=60, help="of each search")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--pack", type=int, default=4)
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--train-size", type=int, help="default: all training images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
