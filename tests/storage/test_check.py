"""`check` names every kind of damage, `--repair` mends it after a backup, and neither harms."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from visweep.errors import StorageError, UsageError
from visweep.storage import rows
from visweep.storage.artifacts import Checkpoints
from visweep.storage.backup import file_url, frozen_copy
from visweep.storage.check import check, repair
from visweep.storage.filesystem import shared_file_system
from visweep.storage.folder import Folder
from visweep.storage.pack import pack, unpack
from visweep.storage.rows import StudyRows

NAME = "night-run"


@pytest.fixture
def path(tmp_path: Path, sweep: Any) -> Path:
    """A study as an interrupted search leaves it: 0 and 1 finished, 2 running, 3 waiting."""
    one = sweep(tmp_path / "studies.db")
    one.want(4)
    one.run()
    lease = one.begin()
    one.train(lease, 2)
    one.finish(lease, TrialState.PRUNED)
    lease = one.begin()
    one.train(lease, 3)
    one.slots.release(lease)
    one.study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.25))
    one.close()
    return tmp_path / "studies.db"


def damage(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement
        connection.commit()


def study(path: Path) -> StudyRows:
    with frozen_copy(file_url(path)) as connection:
        return rows.read(connection, NAME)


def one_fault(path: Path) -> tuple[str, str]:
    (found,) = [f for f in check(file_url(path)) if f.wrong]
    return found.what, found.remedy


def mended(path: Path) -> StudyRows:
    """The study after a repair, which leaves nothing wrong or stale, and a backup of before."""
    before = path.read_bytes()
    (backup,) = repair(file_url(path))
    assert backup.parent == path.parent
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.read_bytes() != before
    assert check(file_url(path)) == []
    assert len(check(file_url(backup))) > 0
    assert repair(file_url(path)) == []
    return study(path)


def test_a_sound_study_has_no_findings(path: Path) -> None:
    before = path.read_bytes()
    assert check(file_url(path)) == []
    assert check(file_url(path), NAME) == []
    assert repair(file_url(path)) == []
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["artifacts", "studies.db"]


def test_an_unknown_study_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="STUDY: unknown value 'night'"):
        check(file_url(path), "night")


def test_rows_without_a_trial_are_deleted(path: Path) -> None:
    damage(
        path,
        "INSERT INTO trial_params (trial_id, param_name, param_value) VALUES (99, 'drop', 0.1)",
    )
    assert one_fault(path) == ("1 row of trial_params without a trial", "deleted")
    mended(path)


def test_a_slot_without_a_trial_is_deleted(path: Path) -> None:
    damage(path, "INSERT INTO visweep_slots (trial_id, study_id) VALUES (99, 1)")
    assert one_fault(path) == ("1 row of visweep_slots without a trial", "deleted")
    mended(path)


def test_rows_without_a_study_are_deleted(path: Path) -> None:
    damage(path, "INSERT INTO study_user_attributes (study_id, key) VALUES (99, 'x')")
    assert one_fault(path) == ("1 row of study_user_attributes without a study", "deleted")
    mended(path)


@pytest.mark.parametrize("number", [0, 2])
def test_a_trial_that_lost_its_slot_gets_it_again(path: Path, number: int) -> None:
    damage(path, f"DELETE FROM visweep_slots WHERE trial_id = {number + 1}")
    what, remedy = one_fault(path)
    assert (what, remedy) == (
        f"study 'night-run', trial {number}: was begun and has no slot", "given one again",
    )  # fmt: skip
    found = mended(path).trials[number]
    assert found.slot is not None
    assert found.generation == 1
    assert found.uuid is not None


def test_a_trial_without_identity_gets_one(path: Path) -> None:
    before = study(path).trials[0].uuid
    damage(path, "UPDATE visweep_slots SET uuid = NULL WHERE trial_id = 1")
    assert (
        one_fault(path)[0] == "1 trial begun without an identity of its own, by an older visweep"
    )
    assert mended(path).trials[0].uuid not in (None, before)


def test_a_running_trial_without_a_parameter_waits_again(path: Path, sweep: Any) -> None:
    damage(path, "DELETE FROM trial_params WHERE trial_id = 3 AND param_name = 'heads'")
    assert one_fault(path) == (
        "study 'night-run', trial 2: was begun without its parameter heads", "set waiting again",
    )  # fmt: skip
    found = mended(path).trials[2]
    assert (found.state, found.parameters, found.curve, found.uuid) == (
        TrialState.WAITING, {}, {}, None,
    )  # fmt: skip
    assert sweep(path).run() == 2


def test_a_finished_trial_without_a_parameter_is_run_again(path: Path, sweep: Any) -> None:
    damage(path, "DELETE FROM trial_params WHERE trial_id = 1 AND param_name = 'drop'")
    assert "trial 0: was begun without its parameter drop" in one_fault(path)[0]
    found = mended(path)
    assert found.trials[0].state == TrialState.FAIL
    assert found.trials[0].attributes["ended"] == "failed: a parameter was missing"
    assert [t.state.name for t in found.trials].count("WAITING") == 2


def test_a_gap_in_a_running_curve_is_reported_again(path: Path, sweep: Any) -> None:
    damage(path, "DELETE FROM trial_intermediate_values WHERE trial_id = 3 AND step = 2")
    assert one_fault(path) == (
        "study 'night-run', trial 2: its curve lacks epoch 2",
        "its later epochs are forgotten, and reported again when it goes on",
    )
    assert list(mended(path).trials[2].curve) == [1]


def test_a_finished_trial_whose_curve_has_a_gap_is_run_again(path: Path) -> None:
    damage(path, "DELETE FROM trial_intermediate_values WHERE trial_id = 1 AND step = 2")
    assert "trial 0: its curve lacks epoch 2" in one_fault(path)[0]
    found = mended(path)
    assert found.trials[0].state == TrialState.FAIL
    assert [t.state.name for t in found.trials].count("WAITING") == 2


def test_a_finished_trial_whose_curve_lost_its_end_is_run_again(path: Path) -> None:
    damage(path, "DELETE FROM trial_intermediate_values WHERE trial_id = 1 AND step = 4")
    assert "trial 0: its curve has 3 epochs of 4" in one_fault(path)[0]
    assert mended(path).trials[0].state == TrialState.FAIL


def test_a_finished_trial_without_a_curve_is_run_again(path: Path) -> None:
    damage(path, "DELETE FROM trial_intermediate_values WHERE trial_id = 1")
    assert "trial 0: is finished and has no curve" in one_fault(path)[0]
    assert mended(path).trials[0].state == TrialState.FAIL


@pytest.mark.parametrize(("number", "value"), [(0, 0.54), (1, 0.52)])
def test_a_finished_trial_without_a_value_gets_its_last(
    path: Path, number: int, value: float
) -> None:
    damage(path, f"DELETE FROM trial_values WHERE trial_id = {number + 1}")
    assert f"trial {number}: is finished and has no value" in one_fault(path)[0]
    (row,) = mended(path).trials[number].parts["trial_values"]
    assert row["value"] == pytest.approx(value)


def test_a_value_that_is_no_number_is_run_again(path: Path) -> None:
    damage(
        path,
        "UPDATE trial_values SET value = NULL, value_type = 'INF_POS' WHERE trial_id = 1",
    )
    assert "trial 0: is finished with a value that is no number" in one_fault(path)[0]
    assert mended(path).trials[0].state == TrialState.FAIL


def test_missing_attributes_are_inferred(path: Path) -> None:
    damage(path, "DELETE FROM trial_user_attributes WHERE trial_id IN (1, 2)")
    found = [f.what for f in check(file_url(path))]
    assert [what.split(": ")[1] for what in found] == [
        "is finished and lacks its attribute ended",
        "is finished and lacks its attribute ended",
    ]
    after = mended(path)
    assert after.trials[0].attributes == {"ended": "completed", "epochs": 4, "provenance": {}}
    assert after.trials[1].attributes["ended"] == "pruned at epoch 2"


def checkpoints(path: Path, sweep: Any) -> Checkpoints:
    one = sweep(path)
    folder: Path = one.folder
    one.close()
    return Checkpoints(Folder(folder))


@pytest.mark.parametrize("change", [lambda b: b[:-3], lambda b: b[:-1] + b"?", lambda _: b"junk"])
def test_a_damaged_checkpoint_is_put_aside(
    path: Path, sweep: Any, change: Callable[[bytes], bytes]
) -> None:
    found = checkpoints(path, sweep)
    state = found.latest(2)
    assert state is not None
    state.write_bytes(change(state.read_bytes()))
    what, remedy = one_fault(path)
    assert str(state) in what
    assert remedy == f"renamed to {state.name}.damaged; a trial that needs it begins anew"
    repair(file_url(path))
    assert found.latest(2) is None
    assert state.with_name(f"{state.name}.damaged").exists()
    # It goes on from its beginning, which is nothing wrong.
    assert [f.wrong for f in check(file_url(path))] == [False]


def test_a_deleted_checkpoint_is_stale(path: Path, sweep: Any) -> None:
    shutil.rmtree(checkpoints(path, sweep).place.folder)
    (found,) = check(file_url(path))
    assert not found.wrong
    assert found.what == "study 'night-run', trial 2: its checkpoint is missing"
    assert repair(file_url(path)) == []


def test_a_lease_whose_owner_is_gone_is_stale_and_released(path: Path) -> None:
    program = (
        "from visweep.storage.owner import this_process; print(this_process().to_text(), end='')"
    )
    owner = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    damage(path, f"UPDATE visweep_slots SET owner = '{owner}' WHERE trial_id = 3")
    (found,) = check(file_url(path))
    assert not found.wrong
    assert "trial 2: its worker is gone (process " in found.what
    slot = mended(path).trials[2].slot
    assert slot is not None
    assert slot["owner"] is None


def test_an_owner_that_cannot_be_read_is_released(path: Path) -> None:
    damage(path, "UPDATE visweep_slots SET owner = '{half' WHERE trial_id = 3")
    assert "trial 2: its lease has an owner that cannot be read" in one_fault(path)[0]
    mended(path)


def test_nothing_is_repaired_under_a_worker(path: Path, sweep: Any) -> None:
    damage(path, "DELETE FROM trial_values WHERE trial_id = 1")
    one = sweep(path)
    one.begin()
    with pytest.raises(UsageError, match=r"--repair: study 'night-run' is being worked on"):
        repair(file_url(path))
    assert not list(path.parent.glob("*.backup*"))


def test_nothing_is_repaired_under_a_worker_on_another_machine(path: Path, sweep: Any) -> None:
    damage(path, "DELETE FROM trial_values WHERE trial_id = 1")
    one = sweep(path)
    one.begin()
    one.close()
    damage(path, 'UPDATE visweep_slots SET owner = replace(owner, \'"host": "\', \'"host": "x\')')
    with pytest.raises(UsageError, match=r"is being worked on \(process \d+ on x.*\)"):
        repair(file_url(path))
    # It has not been heard of for longer than a lease holds.
    damage(path, "UPDATE visweep_slots SET renewed = renewed - 90")
    assert len(repair(file_url(path))) == 1


@pytest.mark.parametrize(
    ("budget", "remedy", "waiting"), [(6, "added", 3), (3, "removed as far as they wait", 0)]
)
def test_a_number_of_slots_that_is_not_the_budget_is_stale(
    path: Path, budget: int, remedy: str, waiting: int
) -> None:
    damage(
        path,
        f"UPDATE study_user_attributes SET value_json = '{budget}' WHERE key = 'visweep:budget'",
    )
    (found,) = check(file_url(path))
    assert (found.wrong, found.remedy) == (False, remedy)
    assert found.what == f"study 'night-run': has 4 slots for a budget of {budget}"
    assert [t.state.name for t in mended(path).trials].count("WAITING") == waiting


def test_numbers_that_are_given_twice_cannot_be_repaired(path: Path) -> None:
    damage(path, "UPDATE trials SET number = 1 WHERE number = 0")
    what, remedy = one_fault(path)
    assert what == "study 'night-run': trial number 1 is given twice or leaves a gap"
    assert "go back to a copy" in remedy


def test_rows_that_cannot_be_read_are_named(path: Path) -> None:
    damage(path, "UPDATE trials SET state = 'NONSENSE' WHERE number = 0")
    what, remedy = one_fault(path)
    assert "study 'night-run': has rows that cannot be read" in what
    assert "go back to a copy" in remedy


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trials SET state = 'NONSENSE' WHERE number = 0",
        "UPDATE trial_user_attributes SET value_json = '{half' WHERE trial_id = 1",
        "UPDATE study_user_attributes SET value_json = '{half'",
    ],
)
def test_what_cannot_be_read_is_neither_packed_nor_repaired(path: Path, statement: str) -> None:
    damage(path, statement)
    assert "has rows that cannot be read" in one_fault(path)[0]
    packed = path.with_name("study.visweep")
    with pytest.raises(StorageError, match=r"study 'night-run': has rows that cannot be read"):
        pack(file_url(path), "night-run", packed)
    assert not packed.exists()
    assert repair(file_url(path)) == []


def test_a_damaged_page_is_named(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 + 100 : page * 4096 + 4000] = b"\xa5" * 3900
    path.write_bytes(content)
    what, remedy = one_fault(path)
    assert what.startswith(f"{path}: damaged: ")
    assert remedy.startswith("none; go back to a copy")
    assert repair(file_url(path)) == []


def test_a_damaged_index_is_made_anew(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'ix_trials_study_id'"
        end = connection.execute(query).fetchone()[0] * 4096
    damage(path, "UPDATE trials SET study_id = study_id + 5 WHERE number = 0")
    stale = path.read_bytes()[end - 4096 : end]
    damage(path, "UPDATE trials SET study_id = study_id - 5 WHERE number = 0")
    content = path.read_bytes()
    path.write_bytes(content[: end - 4096] + stale + content[end:])
    what, remedy = one_fault(path)
    assert "index ix_trials_study_id" in what
    assert remedy == "its indexes are made anew"
    assert len(mended(path).trials) == 5


def test_a_server_is_checked_and_repaired(
    postgres_url: str, sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = sweep(postgres_url)
    one.want(2)
    one.run()
    assert check(postgres_url) == []
    with one.storage.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM trial_values")
        connection.exec_driver_sql("INSERT INTO visweep_slots (trial_id, study_id) VALUES (99, 1)")
    assert [f.remedy for f in check(postgres_url)] == ["deleted", "given that of its last epoch"]
    (backup,) = repair(postgres_url)
    assert backup.suffix == ".visweep"
    assert check(postgres_url) == []
    unpack(backup, file_url(tmp_path / "back.db"))
    assert len(check(file_url(tmp_path / "back.db"))) == 1


def test_another_tools_study_is_left_alone(path: Path, sweep: Any) -> None:
    one = sweep(path)
    one.storage.create_new_study([one.study.direction], "foreign")
    one.close()
    assert check(file_url(path)) == []


def test_a_large_study_is_checked_fast(tmp_path: Path, sweep: Any) -> None:
    """5,000 trials take 3 s; the bar is 10 s, and twice that on a busy machine."""
    one = sweep(tmp_path / "studies.db")
    one.want(1)
    one.run()
    one.close()
    path = tmp_path / "studies.db"
    template = study(path)
    many = tuple(template.trials[0].numbered(n).with_slot(uuid=f"{n}") for n in range(5000))
    again = sweep(path)
    with again.storage.transaction() as connection:
        rows.write_trials(connection, again.study._study_id, many[1:])
    again.study.set_user_attr("visweep:budget", 5000)
    again.close()
    began = time.perf_counter()
    assert check(file_url(path)) == []
    assert time.perf_counter() - began < 20


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /home rw,relatime shared:2 - nfs4 server:/home rw
31 30 8:2 / /home/me/local rw - xfs /dev/sdb1 rw
40 22 0:30 / /mnt/my\040share rw shared:5 master:1 - cifs //server/share rw
41 22 0:31 / /over rw - ext4 /dev/sdc1 rw
42 22 0:32 / /over rw - fuse.sshfs me@host: rw
43 22 0:33 / /host rw - 9p host rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/studies.db", None),
        ("/home/me/studies.db", "nfs4"),
        ("/home", "nfs4"),
        ("/homes/studies.db", None),
        ("/home/me/local/studies.db", None),
        ("/mnt/my share/studies.db", "cifs"),
        ("/over/studies.db", "fuse.sshfs"),
        ("/host/studies.db", "9p"),
    ],
)
def test_network_file_systems_are_told_apart(path: str, kind: str | None) -> None:
    assert shared_file_system(MOUNTS, path) == kind


def test_an_unreadable_line_of_mounts_does_not_matter() -> None:
    assert shared_file_system("junk\n\n1 2 3 - nfs", "/x") is None


def test_a_database_on_a_network_file_system_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 8:1 / {tmp_path} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr("visweep.storage.filesystem._MOUNTS", mounts)
    with pytest.raises(UsageError) as refused:
        check(file_url(path))
    assert str(refused.value).startswith(f"--storage: {path} is on a network file system (nfs4)")
    assert "visweep pack" in str(refused.value)
    assert "postgresql+psycopg://" in str(refused.value)


def test_a_study_truncated_to_nothing_is_not_taken_for_a_new_one(path: Path, sweep: Any) -> None:
    path.write_bytes(b"")
    with pytest.raises(UsageError) as refused:
        sweep(path)
    assert f"{path} is empty (0 bytes); it held studies" in str(refused.value)
    assert path.read_bytes() == b""
