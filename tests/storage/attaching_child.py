"""Attaches to a study, in a process of its own: `attaching_child.py URL FOLDER LABEL [half]`.

It says when it begins; with `half` also when the first file is written, and then waits for a line.
Where it waits for its turn it says so at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import optuna

from visweep.storage import turns
from visweep.storage.attached import File, attach
from visweep.storage.folder import Folder
from visweep.storage.opening import open_storage


def files_of(label: str) -> dict[str, bytes]:
    names = ("report.html", *(f"figure-{n}.png" for n in range(3)))
    return {name: f"<p>{label}".encode() for name in names}


class Halting(Folder):
    _written = 0

    def keep(self, name: str) -> None:
        self._written += 1
        if self._written == 1:
            print("half", flush=True)
            sys.stdin.readline()


def main(url: str, folder: str, label: str, *half: str) -> None:
    storage = open_storage(url)
    study = optuna.load_study(study_name="night-run", storage=storage)
    place = Halting(Path(folder)) if half else Folder(Path(folder))
    files = [File(name, "text/plain", held) for name, held in files_of(label).items()]
    turns.NOTICE = 0.0
    print("begins", flush=True)
    attach(storage, study._study_id, place, files, f"note of <p>{label}")
    storage.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
