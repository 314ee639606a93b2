"""What is PostgreSQL's own: answers that are lost, links that break, locks of rows."""

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

from postgres import Server
from proxy import Proxy
from visweep.errors import StorageError
from visweep.search.heartbeat import Heartbeat
from visweep.storage import retry, server
from visweep.storage.engine import Storage
from visweep.storage.lease import Lease, LeaseLost
from visweep.storage.overview import overview
from visweep.storage.owner import Owner, this_process
from visweep.storage.slots import Slots

pytestmark = pytest.mark.parametrize("backend", ["postgresql"], indirect=True)

OpenUrl = Callable[[str], Storage]
SPACE = {"x": FloatDistribution(0.0, 1.0)}
ELSEWHERE = Owner("elsewhere", "its boot", 4711, "1")


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study([StudyDirection.MAXIMIZE], "study")


@pytest.fixture
def through(url: str, postgres: Server, proxy: Proxy, open_url: OpenUrl) -> Storage:
    """The storage, by a way that can be cut."""
    return open_url(url.replace(f":{postgres.port}/", f":{proxy.port}/"))


def taken(slots: Slots) -> Lease:
    lease = slots.take()
    assert lease is not None
    return lease


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

    def test_finishing(self, slots: Slots, proxy: Proxy, through: Storage) -> None:
        slots.set_budget(1)
        lease = taken(slots)
        slots.begin(lease, {"x": 0.5}, SPACE)
        with slots.fenced(lease), answer_lost(proxy):
            slots.finish(lease, TrialState.COMPLETE, 0.5, {"ended": "completed"})
        (trial,) = through.get_all_trials(1)
        assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
        assert trial.user_attrs == {"ended": "completed"}
        with pytest.raises(LeaseLost, match="finished by another tool"):
            slots.finish(lease, TrialState.COMPLETE, 0.5, {"ended": "completed"})

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
from visweep.storage.opening import open_storage
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
