"""What is PostgreSQL's own: connections that break, locks of rows, passwords."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from postgres import PASSWORD, USER, Server
from proxy import Proxy
from visweep.errors import StorageError, UsageError, VisweepError
from visweep.search.heartbeat import Heartbeat
from visweep.storage import retry, server
from visweep.storage.engine import Storage, artifact_folder, open_storage
from visweep.storage.overview import overview
from visweep.storage.owner import Owner, this_process
from visweep.storage.slots import Lease, LeaseLost, Slots

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)

OpenUrl = Callable[[str], Storage]
SPACE = {"x": FloatDistribution(0.0, 1.0)}
ELSEWHERE = Owner("elsewhere", "its boot", 4711, "1")


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study([StudyDirection.MAXIMIZE], "study")


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    made = Proxy(postgres.port)
    yield made
    made.close()


@pytest.fixture
def through(url: str, postgres: Server, proxy: Proxy, open_url: OpenUrl) -> Storage:
    """The storage, by a way that can be cut."""
    return open_url(url.replace(f":{postgres.port}/", f":{proxy.port}/"))


def taken(slots: Slots) -> Lease:
    lease = slots.take()
    assert lease is not None
    return lease


def setting(storage: Storage, name: str) -> str:
    with storage.reading() as connection:
        return str(connection.execute(sa.text(f"SHOW {name}")).scalar_one())


class TestConnections:
    def test_both_ends_notice_when_the_other_has_vanished(self, storage: Storage) -> None:
        assert setting(storage, "tcp_keepalives_idle") == "10"
        assert setting(storage, "tcp_keepalives_interval") == "5"
        assert setting(storage, "tcp_keepalives_count") == "3"
        assert setting(storage, "tcp_user_timeout") == "120000"
        assert setting(storage, "idle_in_transaction_session_timeout") == "30s"
        with storage.reading() as connection:
            driver: Any = connection.connection.dbapi_connection
            parameters = driver.info.get_parameters()
        assert parameters["keepalives_idle"] == "10"
        assert parameters["tcp_user_timeout"] == "120000"

    def test_what_the_url_says_wins(self, url: str, open_url: OpenUrl) -> None:
        storage = open_url(
            f"{url}?keepalives_idle=77&application_name=mine"
            "&options=-c%20tcp_keepalives_idle%3D66%20-c%20work_mem%3D1MB"
        )
        assert setting(storage, "tcp_keepalives_idle") == "66"
        assert setting(storage, "tcp_keepalives_count") == "3"
        assert setting(storage, "work_mem") == "1MB"
        assert setting(storage, "application_name") == "mine"
        with storage.reading() as connection:
            driver: Any = connection.connection.dbapi_connection
            assert driver.info.get_parameters()["keepalives_idle"] == "77"

    def test_what_the_environment_says_wins(
        self, url: str, open_url: OpenUrl, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGAPPNAME", "mine")
        monkeypatch.setenv("PGOPTIONS", "-c work_mem=1MB")
        storage = open_url(url)
        assert setting(storage, "application_name") == "mine"
        assert setting(storage, "work_mem") == "1MB"
        assert setting(storage, "tcp_keepalives_idle") == "10"

    @pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
    def test_the_driver_need_not_be_named(self, url: str, open_url: OpenUrl, scheme: str) -> None:
        assert open_url(url.replace("postgresql+psycopg", scheme)).get_all_studies() == []

    def test_the_password_may_come_from_elsewhere(
        self,
        postgres: Server,
        url: str,
        open_url: OpenUrl,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        bare = postgres.url(url.rpartition("/")[2], password=None)
        file = tmp_path / "pass file"
        escaped = PASSWORD.replace(":", "\\:")
        file.write_text(f"127.0.0.1:{postgres.port}:*:{USER}:{escaped}\n")
        file.chmod(0o600)
        assert open_url(f"{bare}?passfile={file}").get_all_studies() == []
        assert overview(f"{bare}?passfile={file}") == []
        with monkeypatch.context() as patch:
            patch.setenv("PGPASSFILE", str(file))
            assert open_url(bare).get_all_studies() == []
        with monkeypatch.context() as patch:
            patch.setenv("PGPASSWORD", PASSWORD)
            assert open_url(bare).get_all_studies() == []
        with pytest.raises(StorageError, match="no password supplied"):
            open_url(bare)

    @pytest.mark.parametrize("opened", [open_storage, overview], ids=["to write", "to look"])
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda u: u.set(password="wr0ng"), "password authentication failed for user"),
            (lambda u: u.set(database="nope"), 'database "nope" does not exist'),
            (lambda u: u.set(host="nowhere.invalid"), "nowhere.invalid"),
            (lambda u: u.set(port=1), "Connection refused"),
            (lambda u: u.update_query_dict({"bogus": "1"}), 'invalid connection option "bogus"'),
            (lambda u: u.update_query_dict({"options": "-c a=b"}), '"a"'),
        ],
        ids=["password", "database", "host", "port", "option", "setting"],
    )
    def test_what_is_wrong_is_said_in_one_line_at_once(
        self, url: str, opened: Any, change: Any, reason: str
    ) -> None:
        wrong = change(sa.make_url(url)).render_as_string(hide_password=False)
        begun = time.monotonic()
        with pytest.raises(VisweepError) as refused:
            opened(wrong)
        assert time.monotonic() - begun < 5
        line = str(refused.value)
        assert reason in line
        assert "\n" not in line
        assert PASSWORD not in line
        assert "wr0ng" not in line

    def test_a_look_makes_nothing(self, new_url: str, postgres: Server) -> None:
        with pytest.raises(UsageError, match="holds no studies"):
            open_storage(new_url, must_exist=True)
        with pytest.raises(UsageError, match="holds no studies"):
            overview(new_url)
        found = postgres.execute(
            "SELECT * FROM pg_tables WHERE schemaname = 'public'", new_url.rpartition("/")[2]
        )
        assert found == []

    def test_a_newer_visweeps_is_refused(self, url: str, postgres: Server) -> None:
        postgres.execute("UPDATE visweep_version SET version = 99", url.rpartition("/")[2])
        with pytest.raises(UsageError, match="made by a newer visweep"):
            open_storage(url)

    def test_another_optunas_is_refused(self, url: str, postgres: Server) -> None:
        postgres.execute(
            "UPDATE alembic_version SET version_num = 'v9.0.0.a'", url.rpartition("/")[2]
        )
        with pytest.raises(UsageError, match="optuna version"):
            open_storage(url)

    def test_artifacts_lie_below_the_working_folder(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert artifact_folder(url) == tmp_path / "storage" / "artifacts"

    def test_closed_is_closed(self, url: str, postgres: Server) -> None:
        storage = open_storage(url)
        storage.get_all_studies()
        storage.close()
        name = url.rpartition("/")[2]
        left = f"SELECT * FROM pg_stat_activity WHERE datname = '{name}'"
        deadline = time.monotonic() + 5
        while postgres.execute(left):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextmanager
def answer_lost(proxy: Proxy) -> Iterator[None]:
    """What is committed in here first is committed, and its answer never arrives."""
    proxy.lose_commits(1)
    yield
    assert proxy.commits_to_lose() == 0, "nothing was lost: this proves nothing"


class TestLostAnswers:
    """The transaction was committed, and the link broke before the answer."""

    @pytest.fixture
    def slots(self, through: Storage) -> Slots:
        study_id = through.create_new_study([StudyDirection.MAXIMIZE], "study")
        return Slots(through, study_id, this_process())

    def test_making_slots(self, slots: Slots, proxy: Proxy) -> None:
        with answer_lost(proxy):
            slots.set_budget(5)
        assert slots.unfinished() == len(slots.trial_ids()) == 5
        with answer_lost(proxy):
            slots.set_budget(3)
        assert slots.unfinished() == 3

    def test_leasing(self, slots: Slots, proxy: Proxy) -> None:
        slots.set_budget(2)
        with answer_lost(proxy):
            lease = taken(slots)
        assert (lease.number, lease.generation, lease.adopted) == (0, 2, False)
        slots.begin(lease, {"x": 0.5}, SPACE)
        slots.renew(lease)

    def test_one_trial_from_its_beginning_to_its_end(
        self, slots: Slots, proxy: Proxy, through: Storage
    ) -> None:
        slots.set_budget(1)
        lease = taken(slots)
        with slots.fenced(lease):
            with answer_lost(proxy):
                slots.begin(lease, {"x": 0.5}, SPACE)
            with answer_lost(proxy):
                slots.start_over(lease)
            with answer_lost(proxy):
                through.set_trial_intermediate_value(lease.trial_id, 1, 0.5)
            with answer_lost(proxy):
                through.set_trial_attributes(lease.trial_id, {"a": 1, "b": 2})
            with answer_lost(proxy):
                through.set_trial_user_attr(lease.trial_id, "c", 3)
            with answer_lost(proxy):
                through.set_trial_system_attr(lease.trial_id, "d", 4)
            study = optuna.load_study(study_name="study", storage=through)
            with answer_lost(proxy):
                study.tell(0, 0.5)
        with answer_lost(proxy):
            slots.release(lease)
        (trial,) = through.get_all_trials(1)
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
        assert trial.params == {"x": 0.5}
        assert trial.intermediate_values == {1: 0.5}
        assert trial.user_attrs == {"a": 1, "b": 2, "c": 3}
        assert trial.system_attrs == {"d": 4}
        assert slots.take() is None

    def test_a_result_that_another_wrote_is_not_taken_for_our_own(
        self, slots: Slots, storage: Storage, through: Storage, proxy: Proxy
    ) -> None:
        slots.set_budget(1)
        lease = taken(slots)
        slots.begin(lease, {"x": 0.5}, SPACE)
        proxy.cut()
        telling = Background(
            lambda: through.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [0.5]),
            within=lambda: slots.fenced(lease),
        )
        time.sleep(0.3)
        theirs = Slots(storage, 1, ELSEWHERE, lease_seconds=0.0)
        theirs.take()
        adopted = taken(theirs)
        storage.set_trial_state_values(adopted.trial_id, TrialState.COMPLETE, [0.5])
        proxy.restore()
        with pytest.raises(LeaseLost, match="adopted by another worker"):
            telling.result()

    def test_a_result_that_another_tool_told_is_refused_at_once(
        self, slots: Slots, through: Storage
    ) -> None:
        slots.set_budget(1)
        lease = taken(slots)
        slots.begin(lease, {"x": 0.5}, SPACE)
        through.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [0.5])
        with slots.fenced(lease), pytest.raises(LeaseLost, match="finished by another tool"):
            through.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [0.5])

    def test_studies(self, through: Storage, proxy: Proxy) -> None:
        with answer_lost(proxy):
            study = optuna.create_study(study_name="s", storage=through, load_if_exists=True)
        with answer_lost(proxy):
            study.set_user_attr("k", 1)
        with answer_lost(proxy):
            through.set_study_attributes_once(study._study_id, {"a": 1, "b": 2})
        assert study.user_attrs == {"k": 1, "a": 1, "b": 2}
        with answer_lost(proxy):
            optuna.delete_study(study_name="s", storage=through)
        assert through.get_all_studies() == []
        with pytest.raises(KeyError):
            through.delete_study(study._study_id)

    def test_reading(self, through: Storage, proxy: Proxy) -> None:
        through.get_all_studies()
        proxy.cut()
        reading = Background(through.get_all_studies)
        time.sleep(0.3)
        proxy.restore()
        assert reading.result() == []


class Background:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any], within: Callable[[], Any] | None = None) -> None:
        self._call, self._within = call, within
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._within is None:
                self._result = self._call()
                return
            with self._within():
                self._result = self._call()
        except BaseException as e:
            self._error = e

    def result(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._result


class TestLeases:
    def test_a_lease_that_was_adopted_during_a_cut_is_given_up(
        self, storage: Storage, study_id: int, through: Storage, proxy: Proxy
    ) -> None:
        ours = Slots(through, study_id, this_process())
        theirs = Slots(storage, study_id, ELSEWHERE, lease_seconds=0.4)
        ours.set_budget(1)
        lease = taken(ours)
        ours.begin(lease, {"x": 0.5}, SPACE)
        with Heartbeat(ours, lease, interval=0.05) as heartbeat:
            for _ in range(3):
                assert theirs.take() is None  # it beats
                time.sleep(0.2)
            proxy.cut()
            report = Background(
                lambda: through.set_trial_intermediate_value(lease.trial_id, 1, 0.25),
                within=lambda: ours.fenced(lease),
            )
            theirs.take()
            time.sleep(0.5)
            adopted = taken(theirs)
            assert (adopted.number, adopted.adopted) == (0, True)
            storage.set_trial_intermediate_value(lease.trial_id, 1, 0.5)
            proxy.restore()
            with pytest.raises(LeaseLost):
                report.result()
            time.sleep(0.3)
            with pytest.raises(LeaseLost):
                heartbeat.check()
        assert storage.get_trial(lease.trial_id).intermediate_values == {1: 0.5}

    def test_who_could_not_look_does_not_take_the_others_for_dead(
        self, storage: Storage, study_id: int, postgres: Server
    ) -> None:
        ours = Slots(storage, study_id, this_process(), lease_seconds=0.8)
        theirs = Slots(storage, study_id, ELSEWHERE)
        theirs.set_budget(1)
        lease = taken(theirs)
        assert ours.take() is None
        postgres.stop()
        looking = Background(ours.take)
        time.sleep(1.2)
        postgres.start()
        assert looking.result() is None  # it could not beat, either
        theirs.renew(lease)
        assert ours.take() is None
        time.sleep(1)
        assert taken(ours).number == 0

    def test_nor_does_who_was_kept_waiting(
        self,
        storage: Storage,
        study_id: int,
        through: Storage,
        proxy: Proxy,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(retry, "STALL", 0.5)
        ours = Slots(through, study_id, this_process(), lease_seconds=0.8)
        theirs = Slots(storage, study_id, ELSEWHERE)
        theirs.set_budget(1)
        taken(theirs)
        assert ours.take() is None
        proxy.stall()
        looking = Background(ours.take)
        time.sleep(1.2)
        proxy.restore()
        assert looking.result() is None
        time.sleep(0.4)
        assert ours.take() is None
        time.sleep(0.6)
        assert taken(ours).number == 0

    def test_a_heart_beats_on_after_a_restart(
        self, storage: Storage, study_id: int, postgres: Server, wait_for: Any
    ) -> None:
        slots = Slots(storage, study_id, this_process())
        slots.set_budget(1)
        lease = taken(slots)

        def beats() -> int:
            with storage.reading() as connection:
                found = connection.execute(sa.text("SELECT heartbeat FROM visweep_slots"))
                return int(found.scalar_one())

        with Heartbeat(slots, lease, interval=0.05) as heartbeat:
            wait_for(lambda: beats() > 2)
            postgres.stop()
            time.sleep(0.5)
            postgres.start()
            storage.get_all_studies()
            before = beats()
            wait_for(lambda: beats() > before + 2)
            heartbeat.check()

    def test_a_worker_suspended_in_a_transaction_does_not_keep_the_others_waiting(
        self, storage: Storage, study_id: int, url: str, monkeypatch: pytest.MonkeyPatch,
        open_url: OpenUrl,
    ) -> None:  # fmt: skip
        monkeypatch.setitem(server._SERVER, "idle_in_transaction_session_timeout", 500)
        suspended = open_url(url)
        slots = Slots(storage, study_id, this_process())
        slots.set_budget(1)
        with pytest.raises(StorageError, match=r"idle-in-transaction|closed the connection"):
            self._suspend(suspended, slots)
        assert suspended.get_all_studies()[0].study_name == "study"
        assert slots.unfinished() == 1

    def _suspend(self, suspended: Storage, slots: Slots) -> None:
        with suspended.transaction() as connection:
            connection.execute(sa.text("SELECT * FROM studies FOR UPDATE"))
            begun = time.monotonic()
            lease = taken(slots)  # waits for the row
            assert 0.3 < time.monotonic() - begun < 5
            slots.renew(lease)
            connection.execute(sa.text("UPDATE visweep_slots SET generation = 99"))

    def test_a_trial_that_ends_while_its_slot_is_wanted_is_left(
        self, storage: Storage, study_id: int, url: str, open_url: OpenUrl
    ) -> None:
        ours, theirs = (
            Slots(open_url(url), study_id, this_process()),
            Slots(storage, study_id, ELSEWHERE, lease_seconds=0.0),
        )
        ours.set_budget(1)
        lease = taken(ours)
        ours.begin(lease, {"x": 0.5}, SPACE)
        assert theirs.take() is None
        with ours._storage.transaction() as connection:
            ours._require(connection, lease)
            connection.execute(sa.text("UPDATE trials SET state = 'COMPLETE'"))
            wanting = Background(theirs.take)  # it saw RUNNING, and waits for the row
            time.sleep(0.3)
        assert wanting.result() is None


TAKER = """
import sys, time
from visweep.storage.engine import open_storage
from visweep.storage.owner import this_process
from visweep.storage.slots import Slots
from optuna.trial import TrialState

url, start = sys.argv[1], float(sys.argv[2])
storage = open_storage(url)
slots = Slots(storage, 1, this_process())
time.sleep(max(0.0, start - time.time()))
while True:
    slots.set_budget(60)
    lease = slots.take()
    if lease is None:
        break
    with slots.fenced(lease):
        slots.begin(lease, {}, {})
        storage.set_trial_attributes(lease.trial_id, {"k": 1})
        storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [0.5])
    slots.release(lease)
    print(lease.number, lease.generation, flush=True)
storage.close()
"""


def test_workers_that_lease_at_once_share_the_slots(
    study_id: int, storage: Storage, url: str, launcher: Any, tmp_path: Path
) -> None:
    script = tmp_path / "take.py"
    script.write_text(TAKER)
    start = time.time() + 1.5
    takers = [launcher.start(script, url, start) for _ in range(6)]
    said = [t.wait().stdout.splitlines() for t in takers]
    assert [t.stderr for t in takers] == [""] * 6
    assert sorted(line for lines in said for line in lines) == sorted(
        f"{number} 1" for number in range(60)
    )
    assert sum(bool(lines) for lines in said) > 1, "they did not race"
    assert [t.state.name for t in storage.get_all_trials(study_id)] == ["COMPLETE"] * 60


def test_specifications_that_are_stored_at_once_do_not_mix(
    study_id: int, url: str, open_url: OpenUrl, storage: Storage
) -> None:
    storages = [open_url(url) for _ in range(6)]
    racing = [
        Background(lambda s=s, i=i: s.set_study_attributes_once(study_id, {"a": i, "b": i}))
        for i, s in enumerate(storages)
    ]
    assert sorted(r.result() for r in racing) == [False] * 5 + [True]
    attributes = storage.get_study_user_attrs(study_id)
    assert attributes["a"] == attributes["b"]


def test_a_view_stays_as_it_was(storage: Storage, study_id: int) -> None:
    count = sa.text("SELECT COUNT(*) FROM trials")
    with storage.reading() as connection:
        assert connection.execute(count).scalar_one() == 0
        storage.create_new_trial(study_id)
        assert connection.execute(count).scalar_one() == 0
    with storage.reading() as connection:
        assert connection.execute(count).scalar_one() == 1
    with storage.transaction() as connection:
        assert connection.execute(count).scalar_one() == 1
        threading.Thread(target=storage.create_new_trial, args=(study_id,)).run()
        assert connection.execute(count).scalar_one() == 2


def test_the_overview_tells_what_optuna_tells(storage: Storage, study_id: int, url: str) -> None:
    slots = Slots(storage, study_id, this_process())
    slots.set_budget(3)
    lease = taken(slots)
    slots.begin(lease, {"x": 0.5}, SPACE)
    storage.set_study_user_attr(study_id, "visweep:budget", 3)
    storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [0.75])
    slots.begin(taken(slots), {"x": 0.5}, SPACE)
    storage.create_new_trial(study_id, create_trial(value=0.5))
    (found,) = overview(url)
    assert (found.name, found.budget, found.finished) == ("study", 3, 1)
    assert found.states == {"COMPLETE": 2, "RUNNING": 1, "WAITING": 1}
    assert found.best == (0, 0.75)
