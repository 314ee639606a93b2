from __future__ import annotations

import pickle
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from postgres import everywhere
from visweep.errors import StorageError
from visweep.storage import engine, retry
from visweep.storage.engine import Storage, artifact_folder, open_storage, storage_errors

WAITING = create_trial(state=TrialState.WAITING)
MAXIMIZE = [StudyDirection.MAXIMIZE]


@contextmanager
def plain(path: Path, timeout: float = 0.0) -> Iterator[sqlite3.Connection]:
    """A connection as any other program would make it."""
    with closing(sqlite3.connect(path, timeout=timeout, isolation_level=None)) as connection:
        yield connection


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study(MAXIMIZE, "study")


@pytest.fixture
def trial_id(storage: Storage, study_id: int) -> int:
    return storage.create_new_trial(study_id)


CLAIMER = """
import sys, time
from optuna.trial import TrialState
from visweep.storage.engine import open_storage

url, start = sys.argv[1], float(sys.argv[2])
storage = open_storage(url)
trials = storage.get_all_trials(1)
time.sleep(max(0.0, start - time.time()))
for trial in trials:
    if storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
        print(trial.number, flush=True)
        time.sleep(0.005)  # leave the lock to the others
storage.close()
"""


@everywhere
def test_no_two_processes_claim_one_waiting_trial(
    storage: Storage, study_id: int, url: str, launcher: Any, tmp_path: Path
) -> None:
    # Optuna's own storage hands out trials twice here, in nearly every run.
    import time

    for _ in range(40):
        storage.create_new_trial(study_id, WAITING)
    script = tmp_path / "claim.py"
    script.write_text(CLAIMER)
    start = time.time() + 1.5
    claimers = [launcher.start(script, url, start) for _ in range(4)]
    claims = [[int(line) for line in c.wait().stdout.split()] for c in claimers]
    assert [c.stderr for c in claimers] == [""] * 4
    assert sorted(number for claim in claims for number in claim) == list(range(40))
    assert sum(bool(claim) for claim in claims) > 1, "they did not race"


ASKER = """
import sys, time
import optuna
from visweep.storage.engine import open_storage

optuna.logging.set_verbosity(optuna.logging.ERROR)
url, start = sys.argv[1], float(sys.argv[2])
time.sleep(max(0.0, start - time.time()))
storage = open_storage(url)
study = optuna.create_study(study_name="raced", storage=storage, load_if_exists=True)
for _ in range(8):
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    print(trial.number, flush=True)
storage.close()
"""


@everywhere
def test_processes_that_make_one_storage_at_once_share_it(
    new_url: str, launcher: Any, tmp_path: Path, open_url: Any
) -> None:
    import time

    script = tmp_path / "ask.py"
    script.write_text(ASKER)
    start = time.time() + 1.0
    askers = [launcher.start(script, new_url, start) for _ in range(4)]
    asked = [int(line) for a in askers for line in a.wait().stdout.split()]
    assert [a.stderr for a in askers] == [""] * 4
    assert sorted(asked) == list(range(32))
    if new_url.startswith("sqlite:///"):
        file = Path(new_url.removeprefix("sqlite:///"))
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    # Trials of several processes; each has its parameter, none was lost.
    study = optuna.load_study(study_name="raced", storage=open_url(new_url))
    assert all(t.params.keys() == {"x"} for t in study.trials)


def test_every_connection_is_configured(storage: Storage) -> None:
    connections = [storage.engine.connect() for _ in range(4)]
    try:
        for connection in connections:
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "busy_timeout")
            }
            assert pragmas == {
                "journal_mode": "wal",
                "synchronous": 2,  # FULL
                "busy_timeout": engine.LOCK_TIMEOUT * 1000,
            }
    finally:
        for connection in connections:
            connection.close()


def test_reading_takes_no_lock(storage: Storage, trial_id: int, file: Path) -> None:
    with storage.reading() as reading, plain(file) as other:
        reading.execute(sa.text("SELECT COUNT(*) FROM trials"))
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE trials SET number = 7")
        # Uncommitted: readers see what was there before.
        assert storage.get_trial(trial_id).number == 0
        other.execute("COMMIT")
        # Committed: one reading transaction keeps its view, the next one sees it.
        assert reading.execute(sa.text("SELECT number FROM trials")).scalar() == 0
        assert storage.get_trial(trial_id).number == 7


def test_a_finished_trial_is_refused_at_once(storage: Storage, trial_id: int) -> None:
    """Optuna reads the trial again to say so, while it holds the lock of the write."""
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.5])
    begin = time.monotonic()
    for write in (storage.set_trial_system_attr, storage.set_trial_user_attr):
        with pytest.raises(UpdateFinishedTrialError):
            write(trial_id, "key", "value")
    assert time.monotonic() - begin < 10
    storage.set_study_user_attr(1, "key", "value")


def test_a_writing_transaction_excludes_other_writers(storage: Storage, file: Path) -> None:
    with plain(file) as other:
        with storage.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")


WRITES = {
    "create_new_study": lambda s, study, trial: s.create_new_study(MAXIMIZE, "another"),
    "delete_study": lambda s, study, trial: s.delete_study(study),
    "set_study_user_attr": lambda s, study, trial: s.set_study_user_attr(study, "k", 1),
    "set_study_system_attr": lambda s, study, trial: s.set_study_system_attr(study, "k", 1),
    "create_new_trial": lambda s, study, trial: s.create_new_trial(study),
    "set_trial_param": lambda s, study, trial: s.set_trial_param(
        trial, "x", 0.5, optuna.distributions.FloatDistribution(0, 1)
    ),
    "set_trial_state_values": lambda s, study, trial: s.set_trial_state_values(
        trial, TrialState.COMPLETE, [1.0]
    ),
    "set_trial_intermediate_value": lambda s, study, trial: s.set_trial_intermediate_value(
        trial, 1, 0.5
    ),
    "set_trial_user_attr": lambda s, study, trial: s.set_trial_user_attr(trial, "k", 1),
    "set_trial_system_attr": lambda s, study, trial: s.set_trial_system_attr(trial, "k", 1),
    "set_trial_attributes": lambda s, study, trial: s.set_trial_attributes(trial, {"k": 1}),
    "set_study_attributes_once": lambda s, study, trial: s.set_study_attributes_once(
        study, {"k": 1}
    ),
}


@pytest.mark.parametrize("cached", [False, True], ids=["direct", "through Optuna's cache"])
@pytest.mark.parametrize("name", WRITES)
def test_each_write_begins_as_one(
    storage: Storage, study_id: int, trial_id: int, name: str, cached: bool
) -> None:
    # A transaction that begins by reading cannot be told from one that read what has changed.
    if cached and not hasattr(optuna.storages._CachedStorage, name):
        pytest.skip("a method of our own")
    begun: list[str] = []
    target = optuna.storages._CachedStorage(storage) if cached else storage
    target.get_all_trials(study_id)
    sa.event.listen(
        storage.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *rest: begun.append(statement.split("\n")[0]),
    )
    WRITES[name](target, study_id, trial_id)
    writes = [
        index
        for index, statement in enumerate(begun)
        if statement.startswith(("INSERT", "UPDATE", "DELETE"))
    ]
    assert writes
    for index in writes:
        latest = [s for s in begun[:index] if s.startswith("BEGIN")][-1]
        assert latest == "BEGIN IMMEDIATE"


READS = {
    "get_study_id_from_name": lambda s, study, trial: s.get_study_id_from_name("study"),
    "get_study_name_from_id": lambda s, study, trial: s.get_study_name_from_id(study),
    "get_study_directions": lambda s, study, trial: s.get_study_directions(study),
    "get_study_user_attrs": lambda s, study, trial: s.get_study_user_attrs(study),
    "get_study_system_attrs": lambda s, study, trial: s.get_study_system_attrs(study),
    "get_all_studies": lambda s, study, trial: s.get_all_studies(),
    "get_all_trials": lambda s, study, trial: s.get_all_trials(study),
    "get_trial": lambda s, study, trial: s.get_trial(trial),
    "get_trial_user_attrs": lambda s, study, trial: s.get_trial_user_attrs(trial),
    "get_trial_system_attrs": lambda s, study, trial: s.get_trial_system_attrs(trial),
    "get_trial_id_from_study_id_trial_number": lambda s, study, trial: (
        s.get_trial_id_from_study_id_trial_number(study, 0)
    ),
    "get_trial_number_from_id": lambda s, study, trial: s.get_trial_number_from_id(trial),
    "get_trial_params": lambda s, study, trial: s.get_trial_params(trial),
    "get_n_trials": lambda s, study, trial: s.get_n_trials(study),
}


@pytest.mark.parametrize("cached", [False, True], ids=["direct", "through Optuna's cache"])
@pytest.mark.parametrize("name", [*WRITES, *READS])
@everywhere
def test_each_method_waits_for_a_database_that_is_away(
    storage: Storage, study_id: int, trial_id: int, name: str, cached: bool
) -> None:
    if cached and not hasattr(optuna.storages._CachedStorage, name):
        pytest.skip("a method of our own")
    target = optuna.storages._CachedStorage(storage) if cached else storage
    if name in WRITES:  # what is cached is not read again
        target.get_all_trials(study_id)
    failures = iter([True, True])

    def fail(_: sa.Connection) -> None:
        if next(failures, False):
            locked = sqlite3.OperationalError("database is locked")
            locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise sa.exc.OperationalError("BEGIN", {}, locked)

    sa.event.listen(storage.engine, "begin", fail)
    {**WRITES, **READS}[name](target, study_id, trial_id)
    assert next(failures, None) is None


def test_no_method_of_optunas_is_forgotten() -> None:
    abstract = optuna.storages.BaseStorage
    methods = {n for n, m in vars(abstract).items() if callable(m) and not n.startswith("_")}
    # Those that do not ask the database, and those that ask by the methods above.
    methods -= {"remove_session", "check_trial_is_updatable", "get_best_trial", "get_trial_param"}
    assert methods <= WRITES.keys() | READS.keys()


def test_closing_folds_the_log_into_the_file(
    storage: Storage, trial_id: int, file: Path, tmp_path: Path, open_file: Any
) -> None:
    storage.set_trial_user_attr(trial_id, "note", "durable")
    assert file.with_name(f"{file.name}-wal").stat().st_size > 0
    storage.close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    copy = tmp_path / "copy.db"
    copy.write_bytes(file.read_bytes())
    assert open_file(copy).get_trial(trial_id).user_attrs == {"note": "durable"}


@everywhere
def test_other_tools_read_and_write_while_it_is_open(
    storage: Storage, trial_id: int, url: str
) -> None:
    storage.set_trial_intermediate_value(trial_id, 1, 0.5)
    other = optuna.storages.RDBStorage(url)
    try:
        study = optuna.load_study(study_name="study", storage=other)
        assert study.trials[0].intermediate_values == {1: 0.5}
        study.set_user_attr("seen", True)
    finally:
        other.remove_session()
        other.engine.dispose()
    assert storage.get_study_user_attrs(1) == {"seen": True}


@everywhere
def test_some_attributes_of_a_study_are_read_without_the_others(storage: Storage) -> None:
    study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "study")
    assert storage.get_study_attributes(study_id, "budget") == {}
    for key, value in (("budget", 5), ("long", [1, 2]), ("stop", False)):
        storage.set_study_user_attr(study_id, key, value)
    assert storage.get_study_attributes(study_id, "budget", "stop", "missing") == {
        "budget": 5,
        "stop": False,
    }
    storage.delete_study(study_id)
    with pytest.raises(KeyError):
        storage.get_study_attributes(study_id, "budget")


@everywhere
def test_attributes_of_a_trial_are_set_together_or_not_at_all(
    storage: Storage, trial_id: int
) -> None:
    storage.set_trial_attributes(trial_id, {"epochs": 1, "ended": "completed"})
    with pytest.raises(TypeError):
        storage.set_trial_attributes(trial_id, {"epochs": 2, "ended": object()})
    assert storage.get_trial(trial_id).user_attrs == {"epochs": 1, "ended": "completed"}
    storage.set_trial_attributes(trial_id, {"epochs": 3, "seconds": 1.5})
    assert storage.get_trial(trial_id).user_attrs == {
        "epochs": 3,
        "ended": "completed",
        "seconds": 1.5,
    }


@everywhere
def test_attributes_of_a_study_are_set_once(storage: Storage, study_id: int) -> None:
    assert storage.set_study_attributes_once(study_id, {"first": 1, "second": 2})
    assert not storage.set_study_attributes_once(study_id, {"first": 3, "third": 4})
    assert storage.get_study_user_attrs(study_id) == {"first": 1, "second": 2}


class _Refused(Exception):
    pass


@everywhere
def test_a_failed_check_undoes_the_write_of_its_thread_alone(
    storage: Storage, trial_id: int
) -> None:
    def refuse(_: sa.Connection) -> None:
        raise _Refused

    with storage.fenced(refuse):
        with pytest.raises(_Refused):
            storage.set_trial_intermediate_value(trial_id, 1, 0.5)
        with pytest.raises(_Refused):
            storage.set_trial_attributes(trial_id, {"k": 1})
        assert storage.get_trial(trial_id).intermediate_values == {}  # reading goes on
        thread = threading.Thread(target=storage.set_trial_user_attr, args=(trial_id, "k", 2))
        thread.start()
        thread.join()
    storage.set_trial_user_attr(trial_id, "after", 3)
    assert storage.get_trial(trial_id).user_attrs == {"k": 2, "after": 3}


@everywhere
def test_checks_nest(storage: Storage, trial_id: int) -> None:
    asked: list[str] = []
    with storage.fenced(lambda _: asked.append("outer")):
        with storage.fenced(lambda _: asked.append("inner")):
            storage.set_trial_user_attr(trial_id, "k", 1)
        storage.set_trial_user_attr(trial_id, "k", 2)
    storage.set_trial_user_attr(trial_id, "k", 3)
    assert asked == ["inner", "outer"]


def test_a_lock_that_is_never_released_is_named(
    file: Path, open_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr(retry, "LIMIT", 0.5)
    storage = open_file(file)
    study_id = storage.create_new_study(MAXIMIZE, "study")
    with plain(file) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"studies\.db: database is locked$"):
            storage.set_study_attributes_once(study_id, {"k": 1})
        with (
            pytest.raises(StorageError, match=r"studies\.db: database is locked$"),
            storage_errors(storage),
        ):
            storage.set_study_user_attr(study_id, "k", 1)
    storage.set_study_user_attr(study_id, "k", 1)  # it is usable again


def test_a_file_that_stays_locked_while_it_is_opened_is_named(
    storage: Storage, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOCK_TIMEOUT", 0.2)
    with plain(file) as other:
        # Another visweep is upgrading, say: our table is missing, and the lock is taken.
        other.execute("DROP TABLE visweep_version")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=r"studies\.db: database is locked$"):
            open_storage(f"sqlite:///{file}")


def test_a_damaged_page_is_named(file: Path, open_file: Any) -> None:
    storage = open_file(file)
    study_id = storage.create_new_study(MAXIMIZE, "study")
    for _ in range(50):
        storage.create_new_trial(study_id, WAITING)
    storage.close()
    content = bytearray(file.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"studies\.db: database disk image is malformed"):
        open_storage(f"sqlite:///{file}")


def test_a_page_damaged_while_it_is_open_is_named(file: Path, open_file: Any) -> None:
    storage = open_file(file)
    study_id = storage.create_new_study(MAXIMIZE, "study")
    storage.create_new_trial(study_id, create_trial(value=1.0, user_attrs={"long": "x" * 90_000}))
    storage.close()
    again = open_file(file)
    with file.open("r+b") as damaged:
        damaged.seek(4096 * 3)
        damaged.write(b"\xa5" * (file.stat().st_size - 4096 * 3))
    with (
        pytest.raises(StorageError, match="malformed"),
        storage_errors(again),
    ):
        again.get_all_trials(study_id)


DISK_FULL = """
import optuna, resource, signal, sys
from visweep.errors import StorageError
from visweep.storage.engine import open_storage, storage_errors
from optuna.study import StudyDirection

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = open_storage(sys.argv[1])
study = storage.create_new_study([StudyDirection.MAXIMIZE], "study")
trial = storage.create_new_trial(study)
storage.set_trial_user_attr(trial, "before", "kept")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    with storage_errors(storage):
        for index in range(100):
            storage.set_trial_user_attr(trial, f"attribute {index}", "x" * 20_000)
except StorageError as e:
    print(e)
storage.close()
"""


def test_a_full_disk_is_named_and_what_was_written_is_kept(
    file: Path, launcher: Any, tmp_path: Path, open_file: Any
) -> None:
    script = tmp_path / "fill.py"
    script.write_text(DISK_FULL)
    filling = launcher.run(script, f"sqlite:///{file}")
    assert filling.stderr == ""
    assert filling.stdout.startswith(f"storage sqlite:///{file}: ")
    assert "disk" in filling.stdout
    kept = open_file(file).get_trial(1).user_attrs
    assert kept["before"] == "kept"
    assert 1 < len(kept) < 100


@pytest.mark.parametrize(
    "name", ["a b.db", "ü.db", "{study}.db", "{0}.db", "100%.db", "%41.db", "x'y.db"]
)
def test_any_file_name_will_do(tmp_path: Path, open_file: Any, name: str) -> None:
    storage = open_file(tmp_path / name)
    storage.create_new_study(MAXIMIZE, "study")
    storage.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [s.study_name for s in open_file(tmp_path / name).get_all_studies()] == ["study"]


def test_a_brace_in_a_url_is_no_template(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path}/{{study}} {{0}}.db").close()
    assert [path.name for path in tmp_path.iterdir()] == ["{study} {0}.db"]


@everywhere
def test_it_is_not_carried_to_another_process(storage: Storage) -> None:
    with pytest.raises(TypeError, match="open the storage anew"):
        pickle.dumps(storage)


def test_a_study_of_plain_optuna_becomes_safe_when_it_is_opened(
    file: Path, open_file: Any
) -> None:
    other = optuna.storages.RDBStorage(f"sqlite:///{file}")
    other.create_new_study(MAXIMIZE, "theirs")
    other.remove_session()
    other.engine.dispose()
    storage = open_file(file)
    assert storage.get_study_id_from_name("theirs") == 1
    with plain(file) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_artifacts_lie_beside_the_file(tmp_path: Path) -> None:
    assert artifact_folder(f"sqlite:///{tmp_path}/x.db") == tmp_path / "artifacts"
