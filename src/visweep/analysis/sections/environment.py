"""Where and with what the trials were run, and what of it differed from trial to trial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from visweep import text
from visweep.analysis.document import Block, Paragraph, Section, Table, note
from visweep.analysis.measure import plural
from visweep.analysis.overview import Overview, mapping
from visweep.analysis.sections.cells import MISSING
from visweep.analysis.sections.settings import plain, plain_table
from visweep.analysis.sheet import Value, sheet_of

_NAMES = {
    "trainer": "trainer version",
    "machine": "system",
    "threads": "threads per worker",
    "commit": "commit of visweep",
    "data_dir": "folder of the images",
}
"""What a record's entries are called; the others are called what they are."""
_ROUNDING = frozenset({"torch", "numpy", "system", "device", "hardware", "threads per worker"})
_MOST_RANGES = 8
"""So many runs of trial numbers are listed."""

_UNKNOWN = "not recorded"


def environment_section(overview: Overview) -> Section:
    """Versions, machines and data: what all trials had in common, and what differed."""
    return Section("environment", "Environment", list(_blocks(overview)))


def _blocks(overview: Overview) -> Iterator[Block]:
    fixed = dict(_of_the_study(overview))
    records = _records(overview)
    if not records and not fixed:
        yield note("Nothing is recorded.")
        return
    names = list(dict.fromkeys(name for _, record in records for name in record))
    values = {name: [record.get(name, _UNKNOWN) for _, record in records] for name in names}
    differing = {name: found for name, found in values.items() if len(set(found)) > 1}
    same = {name: found[0] for name, found in values.items() if name not in differing}
    if records:
        yield Paragraph(_in_words(records, differing))
    if differing:
        yield _differences([trial for trial, _ in records], differing)
    if same or fixed:
        caption = "The same in all trials" if differing or not records else "All trials"
        rows = [[name, value] for name, value in {**fixed, **same}.items()]
        yield plain_table(caption, ["setting", "value"], rows)


def _of_the_study(overview: Overview) -> Iterator[tuple[str, str]]:
    """What the study's identity holds fast."""
    data, train = mapping(overview.identity, "data"), mapping(overview.identity, "train")
    if "name" in data:
        yield "data", plain(data["name"])
    if "fingerprint" in data:
        yield "data fingerprint", plain(data["fingerprint"])
    if "precision" in train:
        yield "number format", plain(train["precision"])


def _records(overview: Overview) -> list[tuple[FrozenTrial, dict[str, str]]]:
    """Of each trial that has begun, what is recorded, as text by name; none where nothing is."""
    shared = mapping(overview.specification, "provenance")
    begun = [trial for trial in overview.trials if trial.datetime_start is not None]
    records = [
        (trial, _flat(mapping(trial.user_attrs, "provenance") or shared)) for trial in begun
    ]
    return records if any(record for _, record in records) else []


def _flat(record: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found.update({str(inner): plain(one) for inner, one in value.items()})
        elif value is not None:
            found[_NAMES.get(name, str(name))] = plain(value)
    return found


def _in_words(
    records: Sequence[tuple[FrozenTrial, Mapping[str, str]]],
    differing: Mapping[str, Sequence[str]],
) -> str:
    count = plural(len(records), "trial")
    if len(records) == 1:
        return f"{count} has begun."
    if not differing:
        return f"All {count} ran alike: nothing that is recorded differs among them."
    words = f"Not all of the {count} ran alike: they differ in {text.listing(list(differing))}."
    if "trainer version" in differing:
        words += " Another version of the trainer draws otherwise: the same seed is another run."
    if not _ROUNDING.isdisjoint(differing):
        words += (
            " Where versions, threads or hardware differ, sums are rounded otherwise: the same "
            "configuration and seed give a slightly different result."
        )
    return words


def _differences(trials: Sequence[FrozenTrial], differing: Mapping[str, Sequence[str]]) -> Table:
    rows = []
    records: list[dict[str, Value]] = []
    for name, values in differing.items():
        numbers: dict[str, list[int]] = {}
        for trial, value in zip(trials, values, strict=True):
            numbers.setdefault(value, []).append(trial.number)
        for value, found in sorted(numbers.items(), key=lambda item: -len(item[1])):
            rows.append([name, value, f"{len(found):,}", _listed(found)])
            which = " ".join(map(str, found))
            records.append({"setting": name, "value": value, "trials": len(found), "which": which})
    return Table(
        "What differed among the trials",
        ["setting", "value", "trials", "which"],
        rows,
        numeric=frozenset({2}),
        sheet=sheet_of(records),
    )


def _listed(numbers: Sequence[int]) -> str:
    """Trial numbers in order, runs of them as one: `0 to 3, 7, 9 to 12`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    more = len(words) - _MOST_RANGES
    return ", ".join(words[:_MOST_RANGES]) + (", …" if more > 0 else "") or MISSING
