"""Checkpoints: a resumed run is the uninterrupted one, and no damaged or foreign file is taken."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset
from visweep.errors import CheckpointError
from visweep.sealed import read_sealed, write_sealed
from visweep.training import checkpoint
from visweep.training.fit import fit
from visweep.training.results import EpochResult, FitResult

CPU = torch.device("cpu")
IDENTITY = {"model": {"kind": "vit"}, "data": "abc"}
EPOCHS = [
    EpochResult(1, (2.5, float("inf")), (2.25, float("nan")), (0.5, 0.125), 1.5, 0.25, 320),
    EpochResult(2, (0.1, 0.2), (0.3, 0.4), (1 / 3, 0.7), 1.5, 0.25, 320),
]


def child(what: str, folder: Path) -> Any:
    """What a process of its own printed."""
    out = subprocess.run(
        [sys.executable, Path(__file__).with_name("checkpoint_child.py"), what, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


def curve(result: FitResult) -> list[list[Any]]:
    """All of an epoch but the seconds, as JSON values, which hold every bit of a float."""
    values = [
        (r.epoch, r.train_loss, r.val_loss, r.val_accuracy, r.images) for r in result.history
    ]
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_stopped_after_any_epoch_and_resumed_elsewhere_it_is_bit_identical(
    vit: ViTConfig,
    convnet: ConvNetConfig,
    train: TrainConfig,
    quadrants: Dataset,
    tmp_path: Path,
) -> None:
    whole: dict[str, FitResult] = {}
    for name, model in (("vit", vit), ("convnet", convnet)):
        for precision in ("float32", "bfloat16"):
            exact = train.replace(precision=precision)
            whole[f"{name}.{precision}"] = fit(model, exact, quadrants, device="cpu")
            for last in range(1, train.epochs):
                path = tmp_path / f"{name}.{precision}.{last}"
                fit(
                    model,
                    exact,
                    quadrants,
                    device="cpu",
                    checkpoint=path,
                    on_epoch=lambda r, last=last: r.epoch == last,
                )
    resumed = child("resume", tmp_path)
    assert len(resumed) == 2 * 2 * 3
    for name, history, train_accuracy in resumed:
        expected = whole[name.rpartition(".")[0]]
        assert history == curve(expected), name
        assert tuple(train_accuracy) == expected.train_accuracy, name
        weights = torch.load(tmp_path / f"{name}.weights", weights_only=True)
        assert same_bits(weights, expected.model.state_dict()), name


class TestResume:
    def test_replays_its_epochs_and_heeds_only_the_last_verdict(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"

        def run(on_epoch: Callable[[EpochResult], bool | None]) -> FitResult:
            return fit(vit, train, quadrants, checkpoint=path, on_epoch=on_epoch, device="cpu")

        run(lambda r: r.epoch == 3)
        heard: list[tuple[int, bool]] = []
        # A verdict on a replayed epoch was given long ago: it counts no more.
        resumed = run(lambda r: heard.append((r.epoch, r.replayed)) or r.epoch < 3)
        assert heard == [(1, True), (2, True), (3, False), (4, False)]
        assert resumed.ended == "completed"
        # The run may have died before its last epoch was judged.
        path.unlink()
        run(lambda r: r.epoch == 2)
        assert run(lambda r: True).ended == "stopped"
        assert run(lambda r: None).ended == "completed"

    def test_the_checkpoint_is_there_before_the_callback(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        path = tmp_path / "deep" / "run"

        def die(result: EpochResult) -> None:
            if result.epoch == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(vit, train, quadrants, checkpoint=path, on_epoch=die, device="cpu")
        heard: list[int] = []
        result = fit(
            vit,
            train,
            quadrants,
            checkpoint=path,
            on_epoch=lambda r: heard.append(r.epoch) or r.epoch == 2,
            device="cpu",
        )
        assert heard == [1, 2]
        assert curve(result) == curve(fit(vit, train, quadrants, device="cpu"))[:2]
        assert [p.name for p in path.parent.iterdir()] == ["run"]

    def test_a_finished_run_is_not_trained_again(
        self, model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        first = fit(model, train, quadrants, checkpoint=path, device="cpu")
        written = path.read_bytes()
        again = fit(model, train, quadrants, checkpoint=path, device="cpu")
        assert path.read_bytes() == written
        assert curve(again) == curve(first)
        assert again.ended == "completed"
        assert again.train_accuracy == first.train_accuracy
        assert [r.train_seconds for r in again.history] == [r.train_seconds for r in first.history]

    def test_a_diverged_run_stays_diverged(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        train = train.replace(lr=1e6)
        runs = [
            fit(vit, train, quadrants, checkpoint=tmp_path / "run", device="cpu") for _ in range(2)
        ]
        assert [r.ended for r in runs] == ["diverged", "diverged"]
        assert [len(r.history) for r in runs] == [len(runs[0].history)] * 2

    def test_one_from_before_there_were_types_of_blocks_goes_on(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        path, whole = tmp_path / "run", fit(vit, train, quadrants, device="cpu")
        fit(vit, train, quadrants, checkpoint=path, on_epoch=lambda r: r.epoch == 2, device="cpu")
        model = {"kind": "vit", **dataclasses.asdict(vit)}
        del model["block"]
        # This is how it was described then, and only equal descriptions are taken.
        history, tensors = checkpoint.read(path, {"model": model}, EpochResult, CPU)
        assert len(history) == 2
        assert tensors.keys() == {"values", "buffers", "optimizer", "micro_batch", "at_once"}
        resumed = fit(vit, train, quadrants, checkpoint=path, device="cpu")
        assert curve(resumed) == curve(whole)

    def test_one_from_before_replicas_were_told_apart_goes_on(
        self, model: ModelConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        path, whole = tmp_path / "run", fit(model, train, quadrants, device="cpu")
        fit(model, train, quadrants, checkpoint=path, on_epoch=lambda r: r.epoch == 2)
        saved = torch.load(io.BytesIO(read_sealed(path)), weights_only=True)
        described = json.loads(saved["described"])
        for epoch in described["history"]:
            assert epoch.pop("seeds") == list(train.seeds)
        assert saved["tensors"].pop("at_once") == len(train.seeds)
        buffer = io.BytesIO()
        torch.save({**saved, "described": json.dumps(described)}, buffer)
        write_sealed(path, buffer.getvalue())
        resumed = fit(model, train, quadrants, checkpoint=path, device="cpu")
        assert curve(resumed) == curve(whole)


class TestForeign:
    """A file that is whole, but belongs to another run."""

    @pytest.fixture
    def path(self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path) -> Path:
        path = tmp_path / "run"
        fit(vit, train, quadrants, checkpoint=path, device="cpu", on_epoch=lambda r: True)
        return path

    def assert_refused(
        self, path: Path, model: ModelConfig, train: TrainConfig, data: Dataset, field: str
    ) -> None:
        before = path.read_bytes()
        with pytest.raises(CheckpointError) as refusal:
            fit(model, train, data, checkpoint=path, device="cpu")
        assert str(refusal.value) == f"{path}: belongs to another run (its {field} differs)"
        assert path.read_bytes() == before

    def test_model(
        self,
        path: Path,
        vit: ViTConfig,
        convnet: ConvNetConfig,
        train: TrainConfig,
        quadrants: Dataset,
    ) -> None:
        self.assert_refused(path, convnet, train, quadrants, "model")
        self.assert_refused(path, vit.replace(drop=0.11), train, quadrants, "model")
        self.assert_refused(path, vit.replace(block="post_norm"), train, quadrants, "model")

    @pytest.mark.parametrize(
        "change", [{"lr": 1e-3}, {"seeds": (5, 3)}, {"epochs": 5}, {"precision": "bfloat16"}]
    )
    def test_training(
        self,
        path: Path,
        vit: ViTConfig,
        train: TrainConfig,
        quadrants: Dataset,
        change: dict[str, Any],
    ) -> None:
        self.assert_refused(path, vit, train.replace(**change), quadrants, "train")

    def test_data(
        self,
        path: Path,
        vit: ViTConfig,
        train: TrainConfig,
        quadrants: Dataset,
        many_quadrants: Dataset,
    ) -> None:
        self.assert_refused(path, vit, train, many_quadrants, "data")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "run"
    checkpoint.write(path, IDENTITY, EPOCHS, {"values": torch.arange(300.0), "nested": [{}]})
    return path


def read(path: Path) -> tuple[list[EpochResult], dict[str, Any]]:
    return checkpoint.read(path, IDENTITY, EpochResult, CPU)


def test_gives_back_what_was_written(written: Path) -> None:
    history, tensors = read(written)
    assert [r.replayed for r in history] == [True, False]
    for found, wanted in zip(history, EPOCHS, strict=True):
        # Not-a-number is not equal to itself; its text is.
        assert repr({**vars(found), "replayed": False}) == repr(vars(wanted))
    assert torch.equal(tensors["values"], torch.arange(300.0))
    assert tensors["nested"] == [{}]


class TestDamaged:
    in_place = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

    def assert_refused(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as refusal:
            read(path)
        line = str(refusal.value)
        assert line.startswith(f"{path}: ")
        assert "\n" not in line

    @in_place
    @given(data=st.data())
    def test_cut_off_anywhere(self, written: Path, tmp_path: Path, data: st.DataObject) -> None:
        content = written.read_bytes()
        length = data.draw(st.integers(0, len(content) - 1))
        self.assert_refused(tmp_path / "damaged", content[:length])

    @in_place
    @given(data=st.data())
    def test_one_bit_flipped(self, written: Path, tmp_path: Path, data: st.DataObject) -> None:
        content = bytearray(written.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        self.assert_refused(tmp_path / "damaged", bytes(content))

    @in_place
    @given(content=st.binary(max_size=200))
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        self.assert_refused(tmp_path / "damaged", content)

    def test_something_appended(self, written: Path, tmp_path: Path) -> None:
        self.assert_refused(tmp_path / "damaged", written.read_bytes() + b"\n")

    def test_by_fit_too(
        self, vit: ViTConfig, train: TrainConfig, quadrants: Dataset, tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        fit(vit, train, quadrants, checkpoint=path, device="cpu", on_epoch=lambda r: True)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="damaged or half-written"):
            fit(vit, train, quadrants, checkpoint=path, device="cpu")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class TestHostile:
    """Files whose checksum is right: whoever made them meant to."""

    def assert_forgery_is_refused(self, path: Path, payload: bytes) -> None:
        checksum = hashlib.sha256(payload).hexdigest().encode()
        path.write_bytes(b"visweep checkpoint 1\n" + checksum + b"\n" + payload)
        with pytest.raises(CheckpointError, match="not a checkpoint that this version can read"):
            read(path)

    @pytest.mark.parametrize("dump", [pickle.dumps, saved], ids=["pickle", "torch"])
    @pytest.mark.parametrize("hidden_in", ["the file", "the tensors"])
    def test_code_is_never_run(
        self, tmp_path: Path, dump: Callable[[object], bytes], hidden_in: str
    ) -> None:
        trace = tmp_path / "trace"
        bomb: object = Bomb(trace)
        if hidden_in == "the tensors":
            described = json.dumps({"identity": IDENTITY, "history": []})
            bomb = {"described": described, "tensors": {"values": bomb}}
        payload = dump(bomb)
        self.assert_forgery_is_refused(tmp_path / "forged", payload)
        assert not trace.exists()
        pickle.loads(pickle.dumps(Bomb(trace))).close()
        assert trace.exists()  # the bomb does work

    @pytest.mark.parametrize(
        "content",
        [
            [],
            {},
            {"described": "{}", "tensors": {}},
            {"described": "not JSON", "tensors": {}},
            {
                "described": json.dumps({"identity": IDENTITY, "history": [{"epoch": 1}]}),
                "tensors": {},
            },
            {"described": json.dumps({"identity": IDENTITY, "history": []})},
        ],
        ids=str,
    )
    def test_other_contents_are_refused(self, tmp_path: Path, content: object) -> None:
        self.assert_forgery_is_refused(tmp_path / "forged", saved(content))

    def test_noise_is_refused(self, tmp_path: Path) -> None:
        self.assert_forgery_is_refused(tmp_path / "forged", b"")
        self.assert_forgery_is_refused(
            tmp_path / "forged", b"PK\x03\x04 nothing that torch has written"
        )


def test_a_write_that_is_killed_leaves_the_file_whole(tmp_path: Path) -> None:
    outcome = child("killed", tmp_path)
    (whole,) = outcome["whole"]
    assert any(size < whole for size in outcome["halves"])  # some were killed in mid-write
    # What is found is the last one that was completed: never an older one than before.
    assert outcome["found"] == sorted(outcome["found"])
    assert outcome["found"][-1] > 0


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    outcome = child("full", tmp_path)
    assert outcome == {"error": "File too large", "found": 1, "files": ["run.checkpoint"]}
