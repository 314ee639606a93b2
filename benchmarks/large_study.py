"""How long do commands take on a study of 5,000 trials?

    python benchmarks/large_study.py --trials 5000

Makes a study of the default sweep with so many finished trials: random points of its space, curves
of eight epochs, the attributes that a worker writes, and the checkpoints of three. Then runs real
commands on copies of it, each as a new process (the file may be in the system's cache), and prints
the median of five runs with the fastest and the slowest:

- resume: `sweeps/vit_search.py --trials 5001`, from the process's start until the parameters of
  its first trial are in the storage, as another connection sees it; and how much of that is
  imports, options and data, measured by a process that does these alone;
- first start: the same with an empty storage, which makes 5,000 slots first;
- `visweep status`, `check`, `trials` and `report`;
- the baseline of status: `optuna studies`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from measuring import environment, print_table
from optuna.distributions import distribution_to_json
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.study import StudyDirection
from optuna.trial import TrialState

from visweep.sealed import write_sealed
from visweep.storage.artifacts import Checkpoints, folder_name
from visweep.storage.folder import Folder
from visweep.storage.opening import open_storage
from visweep.storage.rows import StudyRows, TrialRows, write
from visweep.storage.specification import (
    BUDGET,
    SPECIFICATION,
    STUDY_ID,
    Space,
    Specification,
    provenance,
)
from visweep.storage.whereabouts import artifact_folder

ROOT = Path(__file__).parents[1]
BINARIES = Path(sys.executable).parent
STUDY = "large"
TRAIN_SIZE = 200
EPOCHS = 8
PATIENCE = 120.0
CHECKPOINT_BYTES = 2_000_000
_BEGAN = datetime(2026, 11, 1)
_FINITE = TrialValueModel.TrialValueType.FINITE
_FINITE_REPORT = TrialIntermediateValueModel.TrialIntermediateValueType.FINITE


def prepared(storage: str, trials: int) -> Specification:
    """What the sweep script does before it touches the storage."""
    sys.path.insert(0, str(ROOT / "sweeps"))
    from vit_search import SEARCH

    from visweep.cli.prepare import prepare
    from visweep.cli.sweep import SweepOptions
    from visweep.config import DataConfig

    asked = SweepOptions(
        trials=trials,
        study=STUDY,
        storage=storage,
        artifacts=None,
        data=DataConfig(train_size=TRAIN_SIZE),
        train=SEARCH.train.replace(epochs=EPOCHS),
        space="small",
        seeds=1,
        device="cpu",
        workers=None,
        sampler="tpe",
        pruner="halving",
        duplicates="replicate",
        timeout=None,
        seed=0,
    )
    return prepare(SEARCH, asked).specification


def make_study(url: str, specification: Specification, trials: int) -> None:
    """Write the study, and three checkpoints."""
    attributes = {
        SPECIFICATION: {"identity": specification.identity()},
        STUDY_ID: uuid.uuid4().hex,
        BUDGET: trials,
    }
    origin = provenance("cpu")
    chance = random.Random(0)
    study = StudyRows(
        name=STUDY,
        parts={"study_directions": ({"direction": StudyDirection.MAXIMIZE, "objective": 0},)},
        trials=tuple(
            _trial(number, specification.space, origin, chance) for number in range(trials)
        ),
    )
    storage = open_storage(url)
    with storage.transaction() as connection:
        write(connection, _with_attributes(study, attributes))
    storage.close()
    checkpoints = Checkpoints(Folder(artifact_folder(url) / folder_name(STUDY, attributes)))
    for number in range(3):
        write_sealed(checkpoints.path(number, 1), chance.randbytes(CHECKPOINT_BYTES))


def _with_attributes(study: StudyRows, attributes: dict[str, Any]) -> StudyRows:
    empty = StudyRows(study.name, {**study.parts, "study_user_attributes": ()}, study.trials)
    return empty.with_attributes(**attributes)


def _trial(number: int, space: Space, origin: dict[str, Any], chance: random.Random) -> TrialRows:
    """A trial that was completed, as a worker leaves it."""
    top = chance.uniform(0.2, 0.8)
    curve = [round(top * (1 - 0.6**epoch), 4) for epoch in range(1, EPOCHS + 1)]
    attributes = {
        "val_loss": 1 - top, "train_accuracy": top, "val_accuracy_per_seed": [curve[-1]],
        "epochs": EPOCHS, "seconds": 8.125, "images_per_second": 1234.5,
        "peak_memory_bytes": 300_000_000, "num_params": 123_456, "ended": "completed",
        "device": "cpu", "provenance": origin,
    }  # fmt: skip
    began = _BEGAN + timedelta(seconds=8 * number)
    return TrialRows(
        row={
            "number": number,
            "state": TrialState.COMPLETE,
            "datetime_start": began,
            "datetime_complete": began + timedelta(seconds=8),
        },
        parts={
            "trial_params": tuple(
                {
                    "param_name": name,
                    "param_value": _value(distribution, chance),
                    "distribution_json": distribution_to_json(distribution),
                }
                for name, distribution in space.items()
            ),
            "trial_values": ({"objective": 0, "value": curve[-1], "value_type": _FINITE},),
            "trial_intermediate_values": tuple(
                {
                    "step": epoch,
                    "intermediate_value": accuracy,
                    "intermediate_value_type": _FINITE_REPORT,
                }
                for epoch, accuracy in enumerate(curve, start=1)
            ),
            "trial_user_attributes": _as_rows(attributes),
            "trial_system_attributes": _as_rows({"completed_rung_0": curve[1]}),
            "visweep_slots": (
                {"owner": None, "generation": 1, "heartbeat": 0, "uuid": uuid.uuid4().hex},
            ),
        },
    )


def _value(distribution: Any, chance: random.Random) -> float:
    """A random value as it is stored."""
    if hasattr(distribution, "choices"):
        return float(chance.randrange(len(distribution.choices)))
    if isinstance(distribution.low, int):
        return float(chance.randint(distribution.low, distribution.high))
    return chance.uniform(distribution.low, distribution.high)


def _as_rows(attributes: dict[str, Any]) -> tuple[dict[str, str], ...]:
    return tuple({"key": k, "value_json": json.dumps(v)} for k, v in attributes.items())


def seconds_of(command: list[str], folder: Path) -> float:
    """How long a command takes.

    Raises:
        subprocess.CalledProcessError: it fails.
    """
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - began


def seconds_to_first_trial(command: list[str], database: Path) -> float:
    """How long until a command has written the parameters of a trial; it is killed then."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=database.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        while not _has_begun(database):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                process.kill()
                raise RuntimeError(f"no trial was begun:\n{process.communicate()[0].decode()}")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def _has_begun(database: Path) -> bool:
    if not database.exists():
        return False
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        query = "SELECT 1 FROM trials t JOIN trial_params USING (trial_id) WHERE state = 'RUNNING'"
        return connection.execute(query).fetchone() is not None


def on_copies(folder: Path, repetitions: int, measure: Callable[[Path], float]) -> list[float]:
    """Measure several times, each time on a fresh copy of a folder."""
    times = []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as name:
            copy = shutil.copytree(folder, Path(name) / "copy")
            times.append(measure(copy))
    return times


def measurements(trials: int) -> dict[str, tuple[str, Callable[[Path], float]]]:
    """By what is measured, the bar and how to measure it in a folder."""

    def visweep(*arguments: str) -> Callable[[Path], float]:
        def measure(folder: Path) -> float:
            url = f"sqlite:///{folder}/studies.db"
            command = [str(BINARIES / "visweep"), *arguments, "--storage", url]
            return seconds_of(command, folder)

        return measure

    def optuna(folder: Path) -> float:
        url = f"sqlite:///{folder}/studies.db"
        return seconds_of([str(BINARIES / "optuna"), "studies", "--storage", url], folder)

    def sweep(count: int) -> Callable[[Path], float]:
        def measure(folder: Path) -> float:
            database = folder / "studies.db"
            command = [
                sys.executable, str(ROOT / "sweeps" / "vit_search.py"), "--trials", str(count),
                "--study", STUDY, "--train-size", str(TRAIN_SIZE), "--epochs", str(EPOCHS),
                "--device", "cpu", "--storage", f"sqlite:///{database}",
            ]  # fmt: skip
            return seconds_to_first_trial(command, database)

        return measure

    def preparing(folder: Path) -> float:
        url = f"sqlite:///{folder}/studies.db"
        code = f"import large_study; large_study.prepared({url!r}, {trials})"
        return seconds_of([sys.executable, "-c", code], Path(__file__).parent)

    def first_start(folder: Path) -> float:
        (folder / "studies.db").unlink()
        return sweep(trials)(folder)

    return {
        "visweep status": ("1 s", visweep("status")),
        "optuna studies": ("", optuna),
        "resume, to the first proposed trial": ("5 s", sweep(trials + 1)),
        "of that: imports, options, data": ("", preparing),
        "first start, to the first trial": ("", first_start),
        "visweep check": ("10 s", visweep("check")),
        "visweep trials": ("", visweep("trials", STUDY)),
        "visweep report": ("", visweep("report", STUDY)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="rows to measure")
    options = parser.parse_args()
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder}/studies.db"
        make_study(url, prepared(url, options.trials), options.trials)
        size = (folder / "studies.db").stat().st_size / 2**20
        rows = []
        for what, (bar, measure) in measurements(options.trials).items():
            if any(word in what for word in options.only):
                times = on_copies(folder, options.repetitions, measure)
                spread = f"{min(times):.2f}–{max(times):.2f}"
                rows.append([what, f"{median(times):.2f}", spread, bar])
    print_table((f"{options.trials} trials, {size:.0f} MiB", "seconds", "spread", "bar"), rows)


if __name__ == "__main__":
    main()
