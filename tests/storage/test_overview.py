from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from visweep.storage.engine import Storage
from visweep.storage.lease import read_slots
from visweep.storage.overview import StudyOverview, overview
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots
from visweep.storage.specification import BUDGET

STATES = st.sampled_from(["COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL"])


def add(storage: Storage, name: str, trials: list[tuple[str, float | None]]) -> optuna.Study:
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    for state, value in trials:
        kept = value if state in ("COMPLETE", "PRUNED") else None
        reported = {1: kept} if kept is not None else {}
        study.add_trial(
            create_trial(state=TrialState[state], value=kept, intermediate_values=reported)
        )
    return study


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(STATES, st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=0, max_size=12),
    st.none() | st.integers(1, 99),
)
def test_it_tells_what_optuna_tells(
    storage: Storage, file: Path, trials: list[tuple[str, float]], budget: int | None
) -> None:
    name = f"study {len(optuna.get_all_study_names(storage))}"
    study = add(storage, name, trials)
    if budget is not None:
        study.set_user_attr(BUDGET, budget)
    found = overview(f"sqlite:///{file}")[-1]
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    ours = budget is not None  # and then trials count that have a slot: here, none
    best = max(
        ended, key=lambda t: (t.state == TrialState.COMPLETE, t.value, -t.number), default=None
    )
    assert found == StudyOverview(
        name=name,
        budget=budget,
        finished=0 if ours else len(ended),
        states={
            state.name: sum(t.state == state for t in study.trials)
            for state in TrialState
            if any(t.state == state for t in study.trials)
        },
        interrupted=0,
        best=None if best is None else (best.number, best.value or 0.0),
    )


def test_trials_of_other_tools_do_not_count(storage: Storage, file: Path) -> None:
    study = add(storage, "study", [])
    study.set_user_attr(BUDGET, 2)
    slots = Slots(storage, study._study_id, this_process())
    slots.set_budget(2)
    lease = slots.take()
    assert lease is not None
    slots.begin(lease, {}, {})
    study.tell(lease.number, 0.5)
    study.add_trial(create_trial(value=0.75))
    (found,) = overview(f"sqlite:///{file}")
    assert (found.finished, found.budget) == (1, 2)
    assert found.states == {"COMPLETE": 2, "WAITING": 1}


def test_a_trial_that_nobody_holds_is_interrupted(storage: Storage, file: Path) -> None:
    study = add(storage, "study", [])
    study.set_user_attr(BUDGET, 4)
    gone = replace(this_process(), boot="an earlier start of this machine")
    elsewhere = replace(this_process(), host="another machine")
    for owner in (this_process(), this_process(), gone, elsewhere):
        slots = Slots(storage, study._study_id, owner)
        slots.set_budget(4)
        # Not `take`, which would adopt the trial of the process that is gone.
        with storage.transaction() as connection:
            waiting = [
                s for s in read_slots(connection, study._study_id) if s.state == TrialState.WAITING
            ]
            lease = slots._lease(connection, waiting[0])
        slots.begin(lease, {}, {})
        if lease.number == 0:
            slots.release(lease)
    (found,) = overview(f"sqlite:///{file}")
    assert found.states == {"RUNNING": 4}
    assert found.interrupted == 2


def test_who_works_on_it_is_told(storage: Storage, file: Path) -> None:
    study = add(storage, "study", [])
    study.set_user_attr(BUDGET, 3)
    here, there = this_process(), replace(this_process(), host="workhorse/1/2", pid=77)
    for owner, epochs in ((here, 2), (there, 0)):
        slots = Slots(storage, study._study_id, owner)
        slots.set_budget(3)
        lease = slots.take()
        assert lease is not None
        slots.begin(lease, {}, {})
        for epoch in range(1, epochs + 1):
            storage.set_trial_intermediate_value(lease.trial_id, epoch, 0.5)
    (found,) = overview(f"sqlite:///{file}")
    ours, theirs = found.workers
    assert (ours.pid, ours.trial, ours.epoch, ours.gone) == (here.pid, 0, 2, False)
    assert (theirs.host, theirs.pid, theirs.trial, theirs.epoch) == ("workhorse", 77, 1, 0)
    assert not theirs.silent
    with storage.transaction() as connection:
        connection.execute(sa.text("UPDATE visweep_slots SET renewed = renewed - 90"))
    aged = overview(f"sqlite:///{file}")[0].workers
    assert [worker.silent for worker in aged] == [False, True]
    assert all(90 <= (worker.lease_age or 0) < 120 for worker in aged)


def test_a_renewed_lease_is_young_again(storage: Storage, file: Path) -> None:
    study = add(storage, "study", [])
    slots = Slots(storage, study._study_id, this_process())
    slots.set_budget(1)
    lease = slots.take()
    assert lease is not None
    with storage.transaction() as connection:
        connection.execute(sa.text("UPDATE visweep_slots SET renewed = renewed - 90"))
    slots.renew(lease)
    (worker,) = overview(f"sqlite:///{file}")[0].workers
    assert (worker.lease_age or 0) < 30


def test_an_owner_that_cannot_be_read_is_no_reason_to_fail(storage: Storage, file: Path) -> None:
    study = add(storage, "study", [])
    slots = Slots(storage, study._study_id, this_process())
    slots.set_budget(1)
    slots.take()
    with storage.transaction() as connection:
        connection.execute(sa.text("UPDATE visweep_slots SET owner = 'nobody'"))
    (worker,) = overview(f"sqlite:///{file}")[0].workers
    assert (worker.host, worker.pid) == ("", 0)


def test_studies_come_in_the_order_of_their_creation(storage: Storage, file: Path) -> None:
    for name in ("zebra", "ant", "mole"):
        add(storage, name, [("COMPLETE", 0.5)])
    assert [s.name for s in overview(f"sqlite:///{file}")] == ["zebra", "ant", "mole"]


def test_a_result_that_is_no_number_is_not_the_best(storage: Storage, file: Path) -> None:
    add(storage, "odd", [("COMPLETE", float("-inf")), ("COMPLETE", 0.25), ("PRUNED", None)])
    assert overview(f"sqlite:///{file}")[0].best == (1, 0.25)


def test_looking_leaves_no_trace(storage: Storage, file: Path) -> None:
    add(storage, "study", [("COMPLETE", 0.5)])
    storage.close()
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    assert len(overview(f"sqlite:///{file}")) == 1
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_looking_neither_disturbs_a_writer_nor_waits_for_it(storage: Storage, file: Path) -> None:
    study = add(storage, "study", [("COMPLETE", 0.5)])
    with storage.transaction():
        assert overview(f"sqlite:///{file}")[0].finished == 1
    study.add_trial(create_trial(value=0.75))
    assert overview(f"sqlite:///{file}")[0].best == (1, 0.75)


WRITER = """
import sys
import optuna
from optuna.trial import create_trial
from visweep.storage.opening import open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = open_storage(sys.argv[1])
study = optuna.create_study(study_name="busy", storage=storage, direction="maximize")
print("begun", flush=True)
while True:
    study.add_trial(create_trial(value=0.5))
"""


def test_it_can_be_asked_again_and_again_while_another_process_writes(
    file: Path, launcher: Any, tmp_path: Path, wait_for: Any
) -> None:
    script = tmp_path / "write.py"
    script.write_text(WRITER)
    writer = launcher.start(script, f"sqlite:///{file}")
    wait_for(lambda: "begun" in writer.stdout, about=writer)
    counts = [overview(f"sqlite:///{file}")[0].finished for _ in range(50)]
    assert writer.status is None
    assert writer.stderr == ""
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    writer.kill()
    # Killed in the middle of a transaction: what was finished is there.
    assert overview(f"sqlite:///{file}")[0].finished >= counts[-1]
