"""A measurement that is printed and appended to a file row by row: what is cut off leaves what it
has measured until then."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from measuring import environment, table_heading, table_row

RESULTS = Path(__file__).parent / "RESULTS.md"


class Record:
    """One entry: a heading, where and how it was measured, and tables.

    Args:
        file: what to append to; None to print only.
        where: the device, if it is not the processor.
    """

    def __init__(self, file: Path | None, where: str = "") -> None:
        self._file = file
        self._opening = environment() + where
        self._begun = False
        self._heading: list[str] = []
        print(self._opening, flush=True)

    def table(self, *headings: str) -> None:
        """Begin a table with the row that comes next: what fails before leaves nothing."""
        self._heading = table_heading(headings)

    def row(self, *cells: object) -> None:
        """Add a row to the table."""
        if not self._begun:
            self._begun = True
            self._append("", f"### {_command()}", "", self._opening)
        self._say(*self._heading, table_row(cells))
        self._heading = []

    def _say(self, *lines: str) -> None:
        print(*lines, sep="\n", flush=True)
        self._append(*lines)

    def _append(self, *lines: str) -> None:
        if self._file is not None:
            with self._file.open("a") as file:
                file.writelines(f"{line}\n" for line in lines)


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
