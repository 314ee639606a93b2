"""`visweep export` and `visweep predict`: a model leaves its study, and is what it was there."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial
from PIL import Image

from visweep import data
from visweep.cli.choosing import Wanted, choose
from visweep.config import DataConfig
from visweep.data.resize import square
from visweep.errors import UsageError

SCRIPT = '''\
"""A search of small ConvNets that learn something."""

from optuna.distributions import CategoricalDistribution as Choice

from visweep import ConvNetConfig, Recipe, TrainConfig, run

SEARCH = Recipe(
    name="small",
    baseline=ConvNetConfig(widths=(8, 16, 32)),
    spaces={"two": lambda size: {"drop": Choice([0.0, 0.1])}},
    train=TrainConfig(epochs=4, batch_size=16, lr=5e-3, precision="PRECISION"),
)

if __name__ == "__main__":
    run(SEARCH)
'''

WITHOUT_VISWEEP = """
import json, sys
from pathlib import Path
import numpy, onnxruntime
from PIL import Image

model, folder = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
paths = sorted(Path(folder).iterdir())
images = numpy.stack([numpy.asarray(Image.open(path))[None] for path in paths])
(logits,) = session.run(None, {"images": images})
print(json.dumps(dict(zip([p.name for p in paths], logits.argmax(1).tolist()))))
assert not {"torch", "visweep"} & set(sys.modules)
"""


@dataclass(frozen=True)
class Study:
    """A finished study, and its best trial.

    Attributes:
        name: of it.
        url: of its storage.
        folder: that holds it.
    """

    name: str
    url: str
    folder: Path

    def trials(self) -> list[FrozenTrial]:
        storage = optuna.storages.RDBStorage(self.url)
        try:
            return optuna.load_study(study_name=self.name, storage=storage).trials
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def accuracies(self, trial: int = 0) -> list[float]:
        """Of each seed, as it is stored."""
        return list(self.trials()[trial].user_attrs["val_accuracy_per_seed"])


def searched(
    launcher: Any, script: Path, folder: Path, name: str, *options: object, trials: int = 1
) -> Study:
    study = Study(name, f"sqlite:///{folder}/studies.db", folder)
    process = launcher.start(
        script, "--trials", trials, "--workers", 1, "--pruner", "none", "--study", name,
        "--storage", study.url, *options,
    ).wait(280)  # fmt: skip
    assert (process.status, process.stderr) == (0, ""), process.stderr
    return study


@pytest.fixture(scope="module")
def make_study(_launcher: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Study]:
    """A study of one trial of two seeds, in a number format."""
    made: dict[str, Study] = {}

    def make(precision: str) -> Study:
        if precision not in made:
            folder = tmp_path_factory.mktemp(precision)
            script = folder / "small.py"
            script.write_text(SCRIPT.replace("PRECISION", precision))
            given = ("--train-size", 600, "--seeds", 2)
            made[precision] = searched(_launcher, script, folder, precision, *given)
        return made[precision]

    return make


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The validation images as PNG files, and the label of each."""
    folder = tmp_path_factory.mktemp("pictures")
    val = data.load(DataConfig(name="cluttered-digits", train_size=600)).val
    for index, image in enumerate(val.images):
        Image.fromarray(image[0]).save(folder / f"{index:04}.png")
    return folder, {f"{index:04}.png": int(y) for index, y in enumerate(val.labels)}


@pytest.fixture
def run(launcher: Any, tmp_path: Path) -> Any:
    def run_it(*arguments: object, status: int = 0) -> Any:
        process = launcher.run("visweep", *arguments, cwd=tmp_path)
        assert process.status == status, process.stdout + process.stderr
        assert "Traceback" not in process.stderr
        return process

    return run_it


def correct(predicted: dict[str, int], labels: dict[str, int]) -> float:
    assert predicted.keys() == labels.keys()
    return sum(predicted[name] == labels[name] for name in labels) / len(labels)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def by_visweep(run: Any, model: Path, folder: Path) -> dict[str, int]:
    shown = run("predict", model, folder, "--top", 1, "--csv")
    assert shown.stderr == ""
    return {Path(row["image"]).name: int(row["class"]) for row in rows(shown.stdout)}


def by_onnxruntime(launcher: Any, model: Path, folder: Path) -> dict[str, int]:
    command = [sys.executable, "-c", WITHOUT_VISWEEP, model / "model.onnx", folder]
    process = launcher.start_apart(*command).wait()
    assert process.status == 0, process.stderr
    return dict(json.loads(process.stdout))


@pytest.mark.slow
def test_elsewhere_it_gives_the_accuracy_that_the_study_has(
    make_study: Any, pictures: Any, run: Any, launcher: Any, tmp_path: Path
) -> None:
    """Exactly: it was trained in float32, and is exported so."""
    study = make_study("float32")
    stored = study.accuracies()
    best = int(np.argmax(stored))
    assert stored[best] > 0.3, "it has learnt nothing that could be lost"
    assert stored[0] != stored[1]

    wrote = run("export", study.name, "-o", "model", "--storage", study.url)
    assert wrote.stderr == ""
    assert f"trial 0, seed {best} (the best of 2), of float32 to model" in wrote.stdout
    assert f"validation accuracy {100 * stored[best]:.1f} % of 1,500 images" in wrote.stdout
    model = tmp_path / "model"
    files = ["README.md", "config.json", "model.onnx", "model.safetensors"]
    assert sorted(p.name for p in model.iterdir()) == files
    assert [p.name for p in tmp_path.iterdir()] == ["model"]

    # Where nothing of the study is.
    shutil.move(model, tmp_path / "moved")
    folder, labels = pictures
    assert correct(by_visweep(run, tmp_path / "moved", folder), labels) == stored[best]
    assert correct(by_onnxruntime(launcher, tmp_path / "moved", folder), labels) == stored[best]

    said = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert said["classes"] == list("0123456789")
    assert said["preprocessing"]["image_size"] == 32
    assert said["origin"]["seed"] == best
    assert said["measured"]["val_accuracy"] == stored[best]
    assert said["measured"]["val_accuracy_of_trial"] == study.trials()[0].value
    page = (tmp_path / "moved" / "README.md").read_text()
    trial = study.trials()[0]
    train_accuracy = trial.user_attrs["train_accuracy"]
    for words in (
        f"{trial.user_attrs['num_params']:,} parameters",
        f"{100 * stored[best]:.1f} % ({round(1500 * stored[best]):,} of 1,500 images)",
        f"mean over its 2 seeds | {100 * (trial.value or 0):.1f} %",
        f"training accuracy, mean over its 2 seeds | {100 * train_accuracy:.1f} %",
        "the best of 1 finished trial",
        "of its 2 seeds the best one was taken",
        "is optimistic",
        f"fingerprint of the images | `{said['origin']['data']['fingerprint']}`",
        "| drop (searched) | 0.0 |",
        "| epochs | 4 |",
    ):  # fmt: skip
        assert words in page, words


@pytest.mark.slow
def test_trained_in_bfloat16_it_is_off_by_rounding_alone(
    make_study: Any, pictures: Any, run: Any, launcher: Any, tmp_path: Path
) -> None:
    """The float32 weights that the optimiser updates are exported; the study has the accuracy of
    a forward pass in bfloat16, in which images that the model is undecided about change sides."""
    study = make_study("bfloat16")
    seed = int(np.argmin(study.accuracies()))
    stored = study.accuracies()[seed]
    assert stored > 0.3
    run("export", study.name, "--seed", seed, "-o", "model", "--storage", study.url)
    folder, labels = pictures
    ours = by_visweep(run, tmp_path / "model", folder)
    assert abs(correct(ours, labels) - stored) < 0.01
    assert by_onnxruntime(launcher, tmp_path / "model", folder) == ours
    said = json.loads((tmp_path / "model" / "config.json").read_text())
    assert said["measured"]["val_accuracy"] == correct(ours, labels)
    assert said["measured"]["val_accuracy_when_trained"] == stored
    page = (tmp_path / "model" / "README.md").read_text()
    assert f"when it was trained (bfloat16) | {100 * stored:.1f} %" in page
    assert f"seed {seed} was asked for" in page


@pytest.mark.slow
def test_of_the_users_own_photographs(
    launcher: Any, tiny_search: Path, run: Any, tmp_path: Path
) -> None:
    """In colour, not square; and what the page says of other programs is true."""
    rng = np.random.default_rng(0)
    names = ("blue", "green|ish", "really red")
    for channel, name in enumerate(reversed(names)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(40):
            photo = rng.integers(0, 90, (24, 40, 3), dtype=np.uint8)
            photo[..., channel] += 150
            Image.fromarray(photo).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "storage").mkdir()
    images = ("--dataset", "imagefolder", "--data-dir", tmp_path / "photos", "--image-size", 16)
    given = (*images, "--batch-size", 16, "--epochs", 5)
    study = searched(launcher, tiny_search, tmp_path / "storage", "photos", *given)
    run("export", "photos", "-o", "model", "--storage", study.url)

    said = rows(run("predict", "model", "photos", "--csv", "--top", 1).stdout)
    right = [row["class"] == Path(row["image"]).parent.name for row in said]
    assert sum(right) > 110
    page = (tmp_path / "model" / "README.md").read_text()
    assert "RGB images of 16×16 pixels into 3 classes: blue, green\\|ish and really red." in page
    shutil.copy(tmp_path / said[0]["image"], tmp_path / "model" / "image.png")
    code = page.partition("```python\n")[2].partition("```")[0]
    shown = launcher.start_apart(sys.executable, "-c", code, cwd=tmp_path / "model").wait()
    assert shown.status == 0, shown.stderr
    assert shown.stdout == f"[{names.index(said[0]['class'])}]\n"


@pytest.mark.slow
def test_weights_that_were_not_kept_are_trained_again(
    launcher: Any, tiny_search: Path, run: Any, pictures: Any, tmp_path: Path
) -> None:
    """A search keeps the weights of its best three; what to do about a fourth is said."""
    (tmp_path / "storage").mkdir()
    given = ("--train-size", 300, "--epochs", 2)
    study = searched(launcher, tiny_search, tmp_path / "storage", "four", *given, trials=4)
    values = [t.value or 0.0 for t in study.trials()]
    worst = min(range(4), key=lambda n: (values[n], -n))
    refused = run("export", "four", "--trial", worst, "--storage", study.url, status=2)
    (line,) = refused.stderr.splitlines()
    kept = [str(n) for n in range(4) if n != worst]
    assert line.startswith(f"error: --trial: the weights of trial {worst} are not in ")
    assert f"kept there: of {kept[0]}, {kept[1]} and {kept[2]};" in line
    assert [p.name for p in tmp_path.iterdir()] == ["storage"]

    train, export = line.partition("train it again: ")[2].split(", then: ")
    run(*shlex.split(train)[1:])
    wrote = run(*shlex.split(export)[1:])
    assert f"wrote trial {worst} of four to four-trial-{worst}: " in wrote.stdout
    model = tmp_path / f"four-trial-{worst}"
    folder, labels = pictures
    assert correct(by_visweep(run, model, folder), labels) == values[worst]
    page = (model / "README.md").read_text()
    assert "Vision Transformer" in page
    assert "it is number 4 of 4 finished trials (4 of them completed)" in page
    assert "it was trained again" in page


@pytest.mark.slow
def test_what_is_not_the_trained_model_is_not_written(
    make_study: Any, tmp_path: Path, launcher: Any
) -> None:
    """As where the exporter, or the runtime, computes something else."""
    study = make_study("float32")
    code = f"""
import sys
from visweep.cli import main
from visweep.training import onnx_file

write = onnx_file.write_onnx

def wrong(exported, path):
    exported.classifier.std.mul_(1.001)
    write(exported, path)

onnx_file.write_onnx = wrong
sys.argv = ["visweep", "export", "float32", "-o", "model", "--storage", {study.url!r}]
main()
"""
    process = launcher.start_apart(sys.executable, "-c", code, cwd=tmp_path).wait()
    assert process.status == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: model.onnx: a logit is off by ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_other_weights_are_noticed_by_their_accuracy(
    finished_study: Path, tmp_path: Path, launcher: Any
) -> None:
    code = f"""
import sys
from visweep.cli import export, main

accuracy = export._accuracy
export._accuracy = lambda *of: accuracy(*of) + 0.1
sys.argv = ["visweep", "export", "night-run", "-o", "model"]
sys.argv += ["--storage", "sqlite:///{finished_study}/studies.db"]
main()
"""
    process = launcher.start_apart(sys.executable, "-c", code, cwd=tmp_path).wait()
    assert process.status == 1
    (line,) = process.stderr.splitlines()
    assert "what would be exported has a validation accuracy of" in line
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "no study": (["nihgt-run"], "STUDY: unknown value 'nihgt-run' did you mean 'night-run'?"),
    "no trial": (["night-run", "--trial", 9], "--trial: study 'night-run' has no trial 9"),
    "trial in words": (["night-run", "--trial", "best"], "--trial: 'best' whole number"),
    "other seed": (
        ["night-run", "--seed", 7],
        "--seed: 7 is not among the seeds of trial accepted: 0",
    ),
    "a file": (["night-run", "-o", "file"], "--output: file is a file; accepted: a new folder"),
    "full": (["night-run", "-o", "full"], "--output: full is not empty; accepted: a new folder"),
    "nowhere": (["night-run", "-o", "no/model"], "--output: there is no folder no; create"),
    "no checkpoint": (["night-run", "--checkpoint", "x"], "--checkpoint: there is no file x"),
    "other place": (["night-run", "--artifacts", "no"], "--artifacts: there is no folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options(
    case: str, launcher: Any, finished_study: Path, tmp_path: Path, snapshot: Any
) -> None:
    arguments, words = REFUSED[case]
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "file", tmp_path / "full" / "file"):
        file.touch()
    before = snapshot(tmp_path)
    url = f"sqlite:///{finished_study}/studies.db"
    process = launcher.run("visweep", "export", *arguments, "--storage", url, cwd=tmp_path)
    line = process.refusal()
    for word in words.split():
        assert word in line
    assert snapshot(tmp_path) == before


def test_a_trial_that_has_not_completed(
    launcher: Any, tiny_search: Path, tmp_path: Path, snapshot: Any
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    stopped = launcher.run(
        tiny_search, "--trials", 2, "--train-size", 300, "--workers", 1, "--study", "night",
        "--timeout", "0s", "--storage", url, cwd=tmp_path,
    )  # fmt: skip
    assert stopped.status in (0, 130), stopped.stderr
    before = snapshot(tmp_path)
    line = launcher.run("visweep", "export", "night", "--storage", url, cwd=tmp_path).refusal()
    assert line == "STUDY: no trial of 'night' has completed yet"
    given = ("export", "night", "--trial", 1, "--storage", url)
    line = launcher.run("visweep", *given, cwd=tmp_path).refusal()
    assert line == "--trial: trial 1 is waiting; accepted: one that completed"
    assert snapshot(tmp_path) == before


@pytest.fixture
def study(finished_study: Path, tmp_path: Path) -> Study:
    """A copy of a finished study, to be changed."""
    shutil.copytree(finished_study, tmp_path / "storage")
    url = f"sqlite:///{tmp_path}/storage/studies.db"
    return Study("night-run", url, tmp_path / "storage")


def changed(study: Study, *statements: str) -> None:
    with closing(sqlite3.connect(study.folder / "studies.db")) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount == 1
        connection.commit()


def test_the_best_that_completed_is_taken(study: Study) -> None:
    asked = Wanted(
        study=study.name, trial=None, seed=None, output=None, data_dir=None, storage=study.url,
        artifacts=None, checkpoint=study.folder / "studies.db",
    )  # fmt: skip
    for number in range(3):
        changed(study, f"UPDATE trials SET state = 'COMPLETE' WHERE number = {number}")
    # The first of equal ones; and what a trial had reached when it was pruned does not count.
    for values, best in (((0.7, 0.8, 0.9), 2), ((0.7, 0.9, 0.8), 1), ((0.9, 0.7, 0.9), 0)):
        for number, value in enumerate(values):
            where = f"WHERE trial_id = {number + 1}"
            changed(study, f"UPDATE trial_values SET value = {value} {where}")
        assert choose(asked).trial.number == best
    changed(study, "UPDATE trials SET state = 'PRUNED' WHERE number = 0")
    assert choose(asked).trial.number == 2
    for number in (1, 2):
        changed(study, f"UPDATE trials SET state = 'PRUNED' WHERE number = {number}")
    with pytest.raises(UsageError, match="no trial of 'night-run' has completed yet"):
        choose(asked)
    with pytest.raises(UsageError, match="trial 1 is pruned; accepted: one that completed"):
        choose(replace(asked, trial=1))


def test_other_images_than_those_of_the_study(study: Study, launcher: Any) -> None:
    changed(
        study,
        "UPDATE study_user_attributes SET value_json = json_set(value_json, "
        "'$.identity.data.fingerprint', 'other') WHERE key = 'visweep:specification'",
    )
    process = launcher.run("visweep", "export", study.name, "--storage", study.url)
    assert process.refusal() == "--data-dir: these are not the images of study 'night-run'"


def test_a_damaged_checkpoint(study: Study, run: Any, tmp_path: Path) -> None:
    for path in study.folder.glob("artifacts/*/*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    failed = run("export", study.name, "--storage", study.url, status=1)
    assert "damaged or half-written" in failed.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["storage"]


@pytest.fixture(scope="module")
def model(_launcher: Any, finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model; do not write there."""
    folder = tmp_path_factory.mktemp("exported")
    url = f"sqlite:///{finished_study}/studies.db"
    wrote = _launcher.run("visweep", "export", "night-run", "--storage", url, cwd=folder)
    assert (wrote.status, wrote.stderr) == (0, ""), wrote.stderr
    (made,) = folder.iterdir()
    return made


@pytest.mark.slow
class TestPredict:
    def test_one_line_an_image(self, run: Any, model: Path, pictures: Any) -> None:
        one, other = (pictures[0] / f"000{n}.png" for n in (0, 1))
        shown = run("predict", model, one, other, "--top", 2).stdout.splitlines()
        assert [line.partition(": ")[0] for line in shown] == [str(one), str(other)]
        said = [part.split() for part in shown[0].partition(": ")[2].split(", ")]
        assert [len(part) for part in said] == [3, 3]
        found = rows(run("predict", model, one, "--csv", "--top", 99).stdout)
        assert [row["rank"] for row in found] == [str(n) for n in range(1, 11)]
        assert Counter(row["class"] for row in found) == Counter("0123456789")
        probabilities = [float(row["probability"]) for row in found]
        assert sum(probabilities) == pytest.approx(1.0, abs=1e-4)
        assert probabilities == sorted(probabilities, reverse=True)
        assert [part[0] for part in said] == [row["class"] for row in found[:2]]
        assert said[0][1] == f"{100 * probabilities[0]:.1f}"

    def test_any_image_is_brought_to_what_the_model_was_trained_on(
        self, run: Any, model: Path, tmp_path: Path
    ) -> None:
        """Turned upright, grey, and square, as an image folder's are."""
        digit = data.load("cluttered-digits").val.images[3, 0]
        large = np.kron(digit, np.ones((4, 4), np.uint8))
        wide = np.pad(large, ((0, 0), (40, 40)), constant_values=255)
        (tmp_path / "in" / "deeper").mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / "in" / "0 grey.png")
        Image.fromarray(np.stack([wide] * 3, -1)).save(tmp_path / "in" / "1 colour.png")
        turned = Image.Exif()
        turned[0x0112] = 6  # to be turned clockwise by a quarter
        Image.fromarray(np.rot90(wide)).save(tmp_path / "in" / "deeper" / "2.png", exif=turned)
        (tmp_path / "in" / "notes.txt").write_text("no image")
        found = rows(run("predict", model, "in", "--csv", "--top", 10).stdout)
        names = ["in/0 grey.png", "in/1 colour.png", "in/deeper/2.png"]
        assert [row["image"] for row in found] == [n for n in names for _ in range(10)]
        said = [[(r["class"], r["probability"]) for r in found[10 * i :][:10]] for i in range(3)]
        assert said[0] == said[1] == said[2]
        square(Image.fromarray(wide), 32).save(tmp_path / "digit.png")
        plain = rows(run("predict", model, "digit.png", "--csv", "--top", 10).stdout)
        assert [(row["class"], row["probability"]) for row in plain] == said[0]

    def test_bad_input_is_refused_in_one_line(
        self, launcher: Any, model: Path, pictures: Any, tmp_path: Path
    ) -> None:
        good = pictures[0] / "0000.png"
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "empty").mkdir()
        (tmp_path / "half.png").write_bytes(good.read_bytes()[:-300])
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(tmp_path / "deep.png")
        for arguments, words in (
            (["no-model", good], "MODEL: there is no folder no-model; accepted: one of visweep"),
            (["empty", good], "MODEL: empty has no config.json; accepted: a folder of visweep"),
            ([model, "no.png"], "IMAGE: there is no file or folder no.png"),
            ([model, "empty"], "IMAGE: the folder empty has no images; expected PNG or JPEG"),
            ([model, good, "notes.txt"], "IMAGE: notes.txt of no image format"),
            ([model, good, "half.png"], "IMAGE: half.png cannot be read"),
            ([model, "deep.png"], "IMAGE: deep.png has pixels of format I;16; expected 8 bits"),
            ([model], "IMAGE..."),
            ([model, good, "--top", 0], "--top: '0' 1"),
        ):
            line = launcher.run("visweep", "predict", *arguments, cwd=tmp_path).refusal()
            for word in words.split():
                assert word in line, line


def test_the_card_tells_of_the_test_images_that_a_race_looked_at() -> None:
    """Of the very configuration, of another one, and of none."""
    from types import SimpleNamespace

    from visweep.cli.model_card import _of_the_test_images

    tested = {
        "arm": "trial 2", "accuracy": 0.121, "low": 0.08, "high": 0.16, "seeds": [1, 2, 3],
        "images": 1500,
    }  # fmt: skip

    def said(arm: str, tested: Any) -> str:
        facts: Any = SimpleNamespace(chosen=SimpleNamespace(arm=arm, tested=tested))
        return _of_the_test_images(facts)

    assert "whose 3 runs reached 12.1 % (95 %: 8.0 % to 16.0 %)" in said("trial 2", tested)
    assert "expect about that of this model" in said("trial 2", tested)
    assert "**not** of that configuration" in said("trial 1", tested)
    assert "were not looked at" in said("trial 1", {})
