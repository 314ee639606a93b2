"""A race as the report shows it, with its study and alone: made without training."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from race_studies import FIRST, LAST, NAMES, add_race, add_run, specification
from visweep.analysis.document import Command, Document, Paragraph, Plot, Section, Table, Tiles
from visweep.analysis.race import Raced, read_race
from visweep.analysis.race_words import interval
from visweep.analysis.report import build_report, document
from visweep.analysis.statistics.comparison import NoResult
from visweep.analysis.statistics.racing import Outcome
from visweep.storage.specification import OF, RACE, STUDY_ID


def raced(study: optuna.Study) -> Raced:
    return read_race(study.user_attrs, specification(), study.get_trials())


def section(found: Document) -> Section:
    (race,) = (each for each in found.sections if each.anchor == "race")
    return race


def blocks(found: Section, kind: type) -> list[Any]:
    return [block for block in found.blocks if isinstance(block, kind)]


@pytest.fixture
def study() -> optuna.Study:
    study = optuna.create_study(study_name="night", direction="maximize")
    study.set_user_attr("visweep:specification", specification().stored())
    return study


BEHIND = {"trial 7": 0.0, "trial 2": 5.0, "trial 9": 9.0}


class TestReading:
    def test_a_winner(self, study: optuna.Study) -> None:
        found = raced(add_race(study, BEHIND, LAST))
        assert (found.race.outcome, found.chosen) == (Outcome.WINNER, "trial 7")
        assert found.seeds == tuple(range(1, LAST + 1))
        assert found.seeds_of("trial 9") == list(found.seeds)
        assert found.test is None

    def test_means_by_hand(self, study: optuna.Study) -> None:
        race = add_race(study, BEHIND, 0)
        for seed, value in ((1, 0.8), (2, 0.9), (3, 0.85)):
            add_run(race, "trial 7", seed, value)
        mean = raced(race).mean("trial 7")
        assert mean is not None
        assert (mean.accuracy, mean.runs) == (pytest.approx(0.85), 3)
        # 4.3027 standard errors of 0.05 / √3.
        assert mean.high == pytest.approx(0.85 + 4.302653 * 0.05 / 3**0.5)
        early = raced(race).mean("trial 7", 1)
        assert early is not None
        assert (early.accuracy, early.low) == (0.8, None)
        assert raced(race).mean("trial 2") is None

    def test_an_interval_is_within_what_an_accuracy_can_be(self, study: optuna.Study) -> None:
        race = add_race(study, BEHIND, 0)
        for seed, value in ((1, 0.6), (2, 0.9)):
            add_run(race, "trial 7", seed, value)
        mean = raced(race).mean("trial 7")
        assert mean is not None
        assert (mean.low, mean.high) == (0.0, 1.0)
        assert interval(mean).replace("\N{NO-BREAK SPACE}", " ") == "0.0 to 100.0 %"

    def test_what_failed_counts_as_not_run_and_what_diverged_as_without_result(
        self, study: optuna.Study
    ) -> None:
        race = add_race(study, BEHIND, 2)
        add_run(race, "trial 7", 3, None)
        trial = create_trial(
            state=TrialState.FAIL,
            params={"arm": "trial 2", "seed": 3},
            distributions=dict(specification().space),
        )
        race.add_trial(trial)
        found = raced(race)
        assert found.race.wanted == (("trial 2", 3), ("trial 9", 3))
        assert found.seeds_of("trial 7") == [1, 2]

    def test_a_run_that_was_trained_twice_counts_once(self, study: optuna.Study) -> None:
        """As a study that an earlier version merged has it: the lower number stands."""
        race = add_race(study, BEHIND, LAST)
        before = raced(race)
        for name in NAMES:
            for seed in range(1, LAST + 1):
                add_run(race, name, seed, 0.99 if name == "trial 9" else 0.01)
                add_run(race, name, seed, None)
        assert raced(race) == before

    def test_what_other_tools_add_and_what_is_no_accuracy_decides_nothing(
        self, study: optuna.Study
    ) -> None:
        race = add_race(study, BEHIND, LAST)
        before = raced(race)
        for value in (0.99, 7.0):
            for seed in range(1, LAST + 1):
                race.add_trial(
                    create_trial(
                        value=value,
                        params={"arm": "trial 9", "seed": seed},
                        distributions=dict(specification().space),
                    )
                )
        assert raced(race) == before
        add_run(race, "trial 9", 99, 7.0)
        assert raced(race).results["trial 9"][99] == NoResult("its value is no accuracy")

    def test_a_tie_takes_the_highest_mean(self, study: optuna.Study) -> None:
        behind = {"trial 7": 0.1, "trial 2": 0.0, "trial 9": 0.1}
        found = raced(add_race(study, behind, LAST))
        assert found.race.outcome is Outcome.TIE
        means = {arm: found.mean(arm) for arm in NAMES}
        assert found.chosen == max(NAMES, key=lambda arm: means[arm].accuracy)  # type: ignore[union-attr]


class TestTheSection:
    def test_it_is_in_the_report_of_the_study_and_in_its_own(self, study: optuna.Study) -> None:
        race = add_race(study, BEHIND, LAST, test=True)
        assert section(document(study)).blocks
        assert section(document(race)).blocks
        assert 'id="race"' in build_report(study)

    def test_its_own_report_begins_with_it_and_shows_no_ablation(
        self, study: optuna.Study
    ) -> None:
        found = document(add_race(study, BEHIND, LAST))
        first = found.opening[0]
        assert isinstance(first, Paragraph)
        assert first.text.startswith("Trial 7 wins, after ")
        assert not {"ablation", "verdicts"} & {each.anchor for each in found.sections}

    def test_a_study_without_a_race_has_none(self, study: optuna.Study) -> None:
        assert "race" not in [each.anchor for each in document(study).sections]

    def test_a_race_of_another_study_is_none_of_this(self, study: optuna.Study) -> None:
        add_race(study, BEHIND, LAST).set_user_attr(OF, {"study": "day", "kind": "race"})
        assert "race" not in [each.anchor for each in document(study).sections]

    def test_all_three_numbers_are_beside_each_other(self, study: optuna.Study) -> None:
        add_race(study, BEHIND, LAST, test=True)
        (tiles,) = blocks(section(document(study)), Tiles)
        shown = [
            (tile.label, tile.value.replace("\N{NO-BREAK SPACE}", " ")) for tile in tiles.tiles
        ]
        assert shown[0] == ("Validation, in the search", "90.0 %")
        assert shown[1][0] == "Validation, in the race"
        assert shown[2] == ("Test", "84.2 %")
        assert "82.5 to 85.9" in tiles.tiles[2].detail
        assert "359 independent sources" in tiles.tiles[2].detail
        said = [block.text for block in blocks(section(document(study)), Paragraph)]
        assert any("5.8 points above that of the test images" in each for each in said)

    def test_the_report_says_where_the_test_number_stands(self, sweep: optuna.Study) -> None:
        """And does not say that there is none."""
        assert "The test set is not part of this report." in build_report(sweep)
        add_race(sweep, BEHIND, LAST, test=True)
        try:
            page = build_report(sweep)
        finally:
            optuna.delete_study(study_name=f"{sweep.study_name}-race", storage=sweep._storage)
        assert "The test set is not part of this report." not in page
        assert "What the test set says stands under Race." in page

    def test_every_look_has_its_rows(self, study: optuna.Study) -> None:
        race = add_race(study, BEHIND, LAST, test=True)
        found = raced(race)
        looks = blocks(section(document(study)), Table)[1]
        assert {row[0] for row in looks.rows} == {str(look.seeds) for look in found.race.looks}
        dropped = {row[2]: row for row in looks.rows if row[2] != "–"}
        assert set(dropped) == {"trial 2", "trial 9"}
        quiet = [row for row in looks.rows if row[2] == "–"]
        assert quiet
        for row in quiet:
            ratio, _, threshold = row[5].split("\N{NO-BREAK SPACE}")
            assert (float(ratio) > 1, threshold) == (True, "threshold")
        for look in found.race.looks:
            for drop in look.dropped:
                assert dropped[drop.arm][3:5] == [drop.better, f"−{abs(drop.effect):.1f}"]
                assert float(dropped[drop.arm][5]) <= float(dropped[drop.arm][6])

    def test_the_figure_has_a_course_for_each_arm(self, study: optuna.Study) -> None:
        add_race(study, BEHIND, LAST)
        (plot,) = blocks(section(document(study)), Plot)
        traces = {trace.name: trace for trace in plot.chart.figure.data}
        assert set(traces) == {*NAMES, "dropped"}
        looks = len(
            raced(optuna.load_study(study_name="night-race", storage=study._storage)).race.looks
        )
        assert len(traces["trial 7"].x) == looks
        assert len(traces["dropped"].x) == 2

    def test_an_interval_that_ends_at_nought_is_drawn(self, study: optuna.Study) -> None:
        race = add_race(study, BEHIND, 0)
        for seed in range(1, FIRST + 1):
            add_run(race, "trial 7", seed, 0.05 * seed)
            add_run(race, "trial 2", seed, 0.5)
            add_run(race, "trial 9", seed, 0.5 + 0.01 * (seed % 2))
        (plot,) = blocks(section(document(study)), Plot)
        bars = {trace.name: trace.error_y for trace in plot.chart.figure.data}
        assert bars["trial 7"].arrayminus[0] == pytest.approx(10)
        assert bars["trial 2"].arrayminus[0] == bars["trial 2"].array[0] == 0

    def test_of_a_single_look_the_arms_stand_beside_each_other(self, study: optuna.Study) -> None:
        """Each with its mean, its interval and its runs, and within the figure."""
        behind = {"trial 7": 0.0, "trial 2": 0.4, "trial 9": 40.0}
        found = raced(add_race(study, behind, FIRST))
        (look,) = found.race.looks
        assert {drop.arm for drop in look.dropped} == {"trial 9"}
        (plot,) = blocks(section(document(study)), Plot)
        figure = plot.chart.figure
        traces = {trace.name: trace for trace in figure.data}
        assert set(traces) == {*NAMES, *(f"runs of {name}" for name in NAMES), "dropped"}
        assert figure.layout.xaxis.ticktext == NAMES
        assert figure.layout.showlegend is False
        low, high = figure.layout.yaxis.range
        for place, name in enumerate(NAMES):
            mean = found.mean(name)
            assert mean is not None
            assert traces[name].x == (place,)
            assert traces[name].y[0] == pytest.approx(100 * mean.accuracy, abs=0.01)
            runs = traces[f"runs of {name}"]
            assert [y / 100 for y in runs.y] == pytest.approx(
                list(found.results[name].values()), abs=1e-4
            )
            assert runs.customdata == (1, 2, 3)
            assert all(low < y < high for y in (*runs.y, *traces[name].y))
        assert traces["dropped"].x == (2,)
        assert "at the only look" in plot.chart.caption
        assert plot.chart.summary.replace("\N{NO-BREAK SPACE}", " ") == "3 arms, 3 seeds."

    def test_a_huge_interval_does_not_hide_how_the_runs_differ(self, study: optuna.Study) -> None:
        """Two runs have one of 9 standard deviations each way."""
        race = add_race(study, BEHIND, 0)
        race.set_user_attr(RACE, {**race.user_attrs[RACE], "first": 2})
        for name, values in zip(NAMES, ((0.80, 0.81), (0.82, 0.81), (0.79, 0.81)), strict=True):
            for seed, value in enumerate(values, 1):
                add_run(race, name, seed, value)
        (plot,) = blocks(section(document(study)), Plot)
        low, high = plot.chart.figure.layout.yaxis.range
        assert 75 < low < 79
        assert 82 < high < 86
        assert max(trace.error_y.array[0] for trace in plot.chart.figure.data[1:-1:2]) > 6

    def test_before_the_first_look(self, study: optuna.Study) -> None:
        add_race(study, BEHIND, 1)
        found = section(document(study))
        assert not blocks(found, Plot)
        assert not blocks(found, Command)
        assert "not decided" in blocks(found, Paragraph)[0].text

    def test_without_a_test_number_it_says_how_to_get_one(self, study: optuna.Study) -> None:
        add_race(study, BEHIND, LAST)
        (command,) = blocks(section(document(study, ["--storage", "sqlite:///x.db"])), Command)
        assert command.text == "visweep race night --storage sqlite:///x.db"

    def test_so_it_does_under_the_studys_present_name(self, study: optuna.Study) -> None:
        study.set_user_attr(STUDY_ID, "its id")
        race = add_race(study, BEHIND, LAST)
        race.set_user_attr(OF, {"study": "evening", "kind": "race", "id": "its id"})
        for reported in (study, race):
            (command,) = blocks(section(document(reported)), Command)
            assert command.text == "visweep race night"

    def test_without_its_study_there_is_no_command_for_it(self, study: optuna.Study) -> None:
        race = add_race(study, BEHIND, LAST)
        assert blocks(section(document(race)), Command)
        race.set_user_attr(OF, {"study": "evening", "kind": "race", "id": "its id"})
        assert not blocks(section(document(race)), Command)

    def test_runs_without_result_are_named(self, study: optuna.Study) -> None:
        race = add_race(study, BEHIND, 2)
        add_run(race, "trial 9", 3, None)
        said = [block.text for block in blocks(section(document(study)), Paragraph)]
        assert any("trial 9, seed\N{NO-BREAK SPACE}3 (diverged)" in each for each in said)
