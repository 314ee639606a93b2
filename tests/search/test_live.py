"""What a person sees, rendered as a terminal would show it."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from optuna.distributions import IntDistribution
from rich.console import Console

from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.search import live
from visweep.search.expectation import Expectation
from visweep.search.live import LiveView, Pace, PlainView, view_for
from visweep.search.watch import Progress, TrialView, Watcher
from visweep.storage.specification import Specification
from visweep.training.estimate import Calibration, Images

PARAMETERS = {
    "drop": 0.123456789,
    "attn_drop": 0.0,
    "patch_size": 8,
    "embed_dim": 96,
    "depth": 6,
    "num_heads": 4,
}
BEST = (3, 0.85139, PARAMETERS)


def trial(number: int, **more: Any) -> TrialView:
    shown = {"parameters": PARAMETERS, "epochs": 8, "curve": (0.25, 0.5123, 0.7)}
    return TrialView(number=number, **{**shown, **more})


def progress(complete: int = 10, pruned: int = 5, running: int = 1, **more: Any) -> Progress:
    return Progress(budget=50, complete=complete, pruned=pruned, running=running, **more)


def screen(view: LiveView, width: int) -> str:
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=40, color_system="truecolor"
    )
    console.print(view.render())
    written = console.file.getvalue()  # type: ignore[attr-defined]
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).splitlines()
    assert max(len(line) for line in lines) <= width
    return "\n".join(lines)


@pytest.fixture(params=[80, 120])
def width(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def view() -> LiveView:
    """In the middle of a sweep."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    view = LiveView(console)
    view.opened("vit-cluttered-digits-small", progress(complete=8))
    for number in range(10):
        ended = trial(number, state="complete", ended="completed", curve=(0.5,) * 8)
        view.began(trial(number, curve=()), progress())
        view.ended(ended, progress(running=0, best=BEST))
    pruned = trial(11, state="pruned", ended="pruned at epoch 3")
    view.ended(pruned, progress(pruned=6, running=0, failed=1, best=BEST))
    view.began(trial(12, curve=()), progress(pruned=6, failed=1, best=BEST))
    view.advanced(trial(12))
    view.close()
    return view


def test_it_shows_how_far_the_study_is(view: LiveView, width: int) -> None:
    shown = screen(view, width)
    assert "vit-cluttered-digits-small" in shown
    assert "16 of 50" in shown
    for words in ("10 complete", "6 pruned", "1 running", "1 failed"):
        assert words in re.sub(r"\s+", " ", shown.replace("│", ""))
    assert re.search(r"about [\d.]+ (s|min|h)", re.sub(r"\s+", " ", shown.replace("│", "")))


def test_it_shows_the_running_trial(view: LiveView, width: int) -> None:
    row = next(line for line in screen(view, width).splitlines() if " 12 " in line)
    assert "3/8" in row
    assert "▃▅▆·····" in row  # the curve so far, and what is left of it
    assert "70.0 %" in row
    assert "running" in row
    joined = _words(screen(view, width))
    for name, value in (("drop", "0.123"), ("patch_size", "8"), ("num_heads", "4")):
        assert f"{name}={value}" in joined


def test_it_shows_that_a_trial_was_begun_by_another_worker(view: LiveView, width: int) -> None:
    def row() -> str:
        return next(line for line in screen(view, width).splitlines() if " 13 " in line)

    view.began(trial(13, adopted=True), progress())
    assert "continued" in row()
    view.ended(trial(13, adopted=True, state="complete", curve=(0.5,) * 8), progress())
    assert "complete" in row()
    assert "continued" not in row()


def test_it_shows_what_workers_of_other_commands_are_at(view: LiveView, width: int) -> None:
    mine, ended = trial(12), trial(9, state="complete", curve=(0.5,) * 8)
    theirs = [trial(n, state=f"process {4710 + n}", curve=(0.25, 0.5)) for n in (14, 15)]
    # A worker of this command is another one, too, to whichever of them looked.
    said_of = [replace(t, state="process 4700") for t in (mine, ended)]
    view.ended(ended, progress(running=3, beside=(*said_of, *theirs), best=BEST))

    def rows() -> list[str]:
        return [line for line in screen(view, width).splitlines() if "process" in line]

    first, second = rows()
    assert re.search(r"14 +2/8 .*50\.0 % +process 4724", first)
    assert re.search(r"15 +2/8 .*50\.0 % +process 4725", second)
    view.began(trial(14, adopted=True), progress(running=3, beside=tuple(theirs)))
    assert len(rows()) == 1
    view.left(14)
    assert len(rows()) == 1
    view.ended(mine, progress())
    assert rows() == []


def test_it_shows_the_best_trial_and_why_others_ended(view: LiveView, width: int) -> None:
    shown = screen(view, width)
    assert "best trial 3: 85.1 %" in shown
    row = next(line for line in shown.splitlines() if " 11 " in line)
    assert "3/8" in row
    assert "pruned" in row
    assert "Ctrl-C" in shown
    assert "0.123456789" not in shown


def _words(shown: str) -> str:
    return re.sub(r"\s+", " ", shown.replace("│", " "))


def test_it_never_grows_beyond_a_screen(view: LiveView, width: int) -> None:
    lines = screen(view, width).count("\n") + 1
    for number in range(200, 260):
        view.began(trial(number), progress())
        view.note(f"note {number}")
        view.ended(trial(number, state="complete"), progress(best=BEST))
    assert screen(view, width).count("\n") + 1 <= lines + 4
    assert lines <= 24 - 4


def test_many_epochs_leave_room_for_the_rest(view: LiveView, width: int) -> None:
    view.advanced(trial(12, epochs=500, curve=(0.5,) * 250))
    row = next(line for line in screen(view, width).splitlines() if " 12 " in line)
    assert "250/500" in row
    assert "▅▅▅▅▅▅▅▅········" in row
    assert "drop=" in row


def test_before_the_first_trial_there_is_something_to_see(width: int) -> None:
    view = LiveView(Console(file=io.StringIO(), force_terminal=True))
    view.opened("study", Progress(budget=50))
    view.close()
    shown = screen(view, width)
    assert "0 of 50" in shown
    assert "best" not in shown
    assert "left" not in shown


def test_a_diverged_or_failed_trial_does_not_break_it(view: LiveView, width: int) -> None:
    view.ended(trial(13, state="failed", ended="RuntimeError: [oh] no", curve=()), progress())
    view.ended(
        trial(14, state="pruned", ended="diverged", curve=(float("nan"),)), progress(best=BEST)
    )
    view.note("[red] is no markup here")
    view.stopping("terminated")
    shown = _words(screen(view, width))
    assert "failed" in shown
    assert "diverged" in shown
    assert "[red] is no markup here" in shown
    assert "terminated: the running epoch is being finished" in shown


class TestPlain:
    def lines(self, width: int = 80) -> tuple[PlainView, io.StringIO]:
        file = io.StringIO()
        return PlainView(Console(file=file, width=width)), file

    def test_one_line_per_trial(self) -> None:
        view, file = self.lines()
        view.opened("night-run", progress(running=0))
        for number in range(3):
            view.began(trial(number, curve=()), progress())
            for epochs in range(1, 4):
                view.advanced(trial(number, curve=(0.5,) * epochs))
            view.ended(
                trial(number, state="pruned", ended="pruned at epoch 3", seconds=75.4),
                progress(pruned=6 + number, running=0, best=BEST),
            )
        lines = file.getvalue().splitlines()
        assert lines[0] == "study night-run: 15 of 50 trials finished"
        assert len(lines) == 5
        assert lines[1].startswith("trial 0 runs: drop=0.123 attn_drop=0")
        assert lines[2].startswith(
            "[16/50] trial 0: 70.0 % pruned at epoch 3, 1 min 15 s, drop=0.123 attn_drop=0 "
            "patch_size=8 embed_dim=96 depth=6 num_heads=4 | best 85.1 %"
        )
        assert lines[4].startswith("[18/50] trial 2: ")

    def test_slow_epochs_get_lines_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        view, file = self.lines()
        view.advanced(trial(3, curve=(0.25,)))
        assert file.getvalue() == ""
        monkeypatch.setattr(live, "_QUIET_SECONDS", 0.0)
        view.advanced(trial(3, curve=(0.25, 0.5)))
        assert file.getvalue() == "trial 3: epoch 2 of 8, 50.0 %\n"

    def test_a_stop_is_acknowledged_past_all_buffers(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        view, file = self.lines()
        view.stopping("interrupted")
        assert capfd.readouterr().err.startswith("interrupted: the running epoch is being fini")
        assert file.getvalue() == ""

    def test_a_note_is_a_line(self) -> None:
        view, file = self.lines(40)
        view.note("trial 3 begins anew: [damaged] " + "x" * 60)
        assert file.getvalue() == "trial 3 begins anew: [damaged] " + "x" * 60 + "\n"

    def test_a_trial_that_failed_at_once(self) -> None:
        view, file = self.lines()
        view.opened("night-run", progress())
        view.ended(trial(4, state="failed", ended="ValueError: no", curve=()), progress(failed=1))
        assert "trial 4: — ValueError: no" in file.getvalue().splitlines()[1]


def test_a_terminal_gets_the_live_view_and_a_pipe_gets_lines() -> None:
    assert isinstance(view_for(Console(file=io.StringIO(), force_terminal=True)), LiveView)
    assert isinstance(view_for(Console(file=io.StringIO())), PlainView)


def test_the_time_left_is_predicted_from_what_was_watched() -> None:
    import time

    pace = Pace()
    pace.start(progress(complete=20, pruned=0))
    assert pace.seconds_left(progress(complete=20, pruned=0)) is None
    time.sleep(0.1)
    left = pace.seconds_left(progress(complete=22, pruned=0))
    assert left is not None
    assert 28 * 0.05 <= left < 28 * 5
    assert pace.seconds_left(progress(complete=60, pruned=0)) == 0


class TestBeforeATrialHasEnded:
    """Nothing was pruned yet, so all that can be told is how long it takes at most."""

    def test_the_epochs_so_far_tell(self) -> None:
        pace = Pace()
        pace.goes_on(trial(0, curve=()))
        assert pace.seconds_at_most(progress(0, 0)) is None
        # 2 s an epoch: 6 are to come of this trial, 8 of each of 49.
        pace.goes_on(trial(0, curve=(0.5, 0.5), seconds=4.0))
        assert pace.seconds_at_most(progress(0, 0)) == 12 + 49 * 16
        # Two at once, of which one has only begun.
        pace.goes_on(trial(1, curve=()))
        assert pace.seconds_at_most(progress(0, 0)) == (12 + 16 + 48 * 16) / 2
        pace.is_over(1)
        assert pace.seconds_at_most(progress(0, 0)) == 12 + 49 * 16

    def test_what_is_expected_tells_from_the_start(self, expected: Expectation) -> None:
        pace = Pace(expected)
        pace.goes_on(trial(0, parameters={"depth": 1}, curve=()))
        # An epoch takes 1 s a block; there are 1 to 3.
        assert pace.seconds_at_most(progress(0, 0)) == 8 + 49 * 16
        # It takes twice as long as was expected, so all will.
        pace.goes_on(trial(0, parameters={"depth": 1}, curve=(0.5,), seconds=2.0))
        assert pace.seconds_at_most(progress(0, 0)) == 14 + 49 * 32

    def test_the_views_say_so(self, expected: Expectation, width: int) -> None:
        view = LiveView(Console(file=io.StringIO(), force_terminal=True), expected)
        view.opened("study", progress(0, 0, 0))
        view.began(trial(0, parameters={"depth": 1}, curve=()), progress(0, 0))
        view.close()
        assert "up to 13 min left" in _words(screen(view, width))
        view.ended(trial(0, parameters={"depth": 1}), progress(1, 0, 0))
        assert "up to" not in _words(screen(view, width))

    def test_a_log_says_so(self, expected: Expectation, monkeypatch: pytest.MonkeyPatch) -> None:
        file = io.StringIO()
        view = PlainView(Console(file=file, width=80), expected)
        monkeypatch.setattr(live, "_QUIET_SECONDS", 0.0)
        view.began(trial(0, parameters={"depth": 1}, curve=()), progress(0, 0))
        view.advanced(trial(0, parameters={"depth": 1}, curve=(0.5,), seconds=1.0))
        assert file.getvalue().endswith("epoch 1 of 8, 50.0 % | up to 13 min left\n")
        view.ended(trial(0, parameters={"depth": 1}), progress(1, 0, 0))
        view.advanced(trial(1, parameters={"depth": 1}, curve=(0.5,), seconds=1.0))
        assert file.getvalue().endswith("epoch 1 of 8, 50.0 %\n")


@pytest.fixture
def expected() -> Expectation:
    """A second for each block and epoch, of one, two or three blocks."""
    specification = Specification(
        space={"depth": IntDistribution(1, 3)},
        data=DataConfig(),
        fingerprint="of nothing",
        model=ViTConfig(),
        train=TrainConfig(epochs=8, precision="float32"),
        sampler="random",
        pruner="none",
        seed=0,
    )
    step = {"blocks": 1.0}
    calibration = Calibration(
        device="cpu", precision="float32", step=step, evaluation={}, memory={}, held=0.0
    )
    return Expectation(specification, Images(train=64, val=10), calibration)


def test_a_watcher_need_not_care_for_everything(capfd: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher()
    watcher.opened("study", progress())
    watcher.began(trial(0), progress())
    watcher.advanced(trial(0))
    watcher.ended(trial(0), progress())
    watcher.note("note")
    watcher.stopping("interrupted")
    watcher.left(0)
    watcher.close()
    assert capfd.readouterr() == ("", "")
    assert vars(watcher) == {}, "it is to keep nothing, either"
