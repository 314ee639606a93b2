"""The yardstick of the benchmarks trains what visweep trains, and both are measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from published_files import write_idx
from visweep import models
from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.resident import to_device
from visweep.draws import Draws
from visweep.models.layers import GHOST, initialise
from visweep.search.spaces import check_point
from visweep.training.optimizer import FlatParameters
from visweep.training.optimizer import schedule as our_schedule
from visweep.training.passes import Pass

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
VIT = ViTConfig(
    image_size=12, in_chans=3, num_classes=5, patch_size=4, embed_dim=24, depth=3, num_heads=3,
    mlp_ratio=2.5, drop=0.1, attn_drop=0.2,
)  # fmt: skip
CONVNET = ConvNetConfig(
    image_size=12, in_chans=3, num_classes=5, widths=(4, 6, 6), depths=(2, 1, 2), drop=0.1
)
PATIENCE = 280.0  # seconds; a process of two threads takes long where others train
TOLERANCE = 1e-4  # of logits
CONFIGS = [VIT, VIT.replace(class_token=True), CONVNET]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def drawn(config: ModelConfig) -> nn.Module:
    """Our model for one replica; no parameter and no statistic is left at zero or one."""
    model = models.build(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.uniform_(-0.8, 0.8, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.1)
    return model


def renamed(ours: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """Our weights under the names, and in the shapes, of plain torch."""
    state = {name: value[0] for name, value in ours.state_dict().items()}
    return vit_names(state, config) if isinstance(config, ViTConfig) else convnet_names(state)


def linear(state: Mapping[str, Tensor], our: str, their: str) -> dict[str, Tensor]:
    return {f"{their}weight": state[f"{our}.weight"].T, f"{their}bias": state[f"{our}.bias"][0]}


def vit_names(state: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    shape = (config.embed_dim, config.in_chans, config.patch_size, config.patch_size)
    theirs = {
        "patches.weight": state["embedding.proj.weight"].T.reshape(shape),
        "patches.bias": state["embedding.proj.bias"][0],
        "position": state["embedding.position"][None],
        **linear(state, "head", "head."),
        **{name: value for name, value in state.items() if "norm" in name},
    }
    if "embedding.class_token" in state:
        theirs["class_token"] = state["embedding.class_token"][None]
    for index in range(config.depth):
        block = f"blocks.{index}"
        theirs |= linear(state, f"{block}.attn.qkv", f"{block}.attention.in_proj_")
        theirs |= linear(state, f"{block}.attn.proj", f"{block}.attention.out_proj.")
        theirs |= linear(state, f"{block}.mlp.fc1", f"{block}.mlp.0.")
        theirs |= linear(state, f"{block}.mlp.fc2", f"{block}.mlp.3.")
    return theirs


def convnet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    theirs = linear(state, "head", "head.")
    for name, value in state.items():
        if name.startswith("stem"):
            theirs[name.replace("stem_norm", "stem.1").replace("stem.weight", "stem.0.weight")] = (
                value
            )
        elif name.startswith("blocks"):
            theirs[name.replace("norm", "bn").replace("shortcut", "downsample")] = value
    return theirs


@pytest.mark.parametrize("config", CONFIGS, ids=["mean", "class token", "convnet"])
def test_the_conventional_models_give_our_logits(config: ModelConfig) -> None:
    from rival import build

    ours, theirs = drawn(config), build(config).double().eval()
    theirs.load_state_dict(renamed(ours, config))
    images = torch.randn(
        4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    expected = ours(images[None])[0]
    assert expected.std(0).min() > 1e-3  # it says something about the images
    torch.testing.assert_close(theirs(images), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "config", [VIT.replace(block="parallel"), CONVNET.replace(block="late_relu")]
)
def test_there_is_one_type_of_block(config: ModelConfig) -> None:
    from rival import build

    with pytest.raises(ValueError, match=r"^block: .* the only one here"):
        build(config)


@pytest.mark.parametrize("config", CONFIGS, ids=["mean", "class token", "convnet"])
def test_the_same_weights_decay(config: ModelConfig) -> None:
    from rival import build, parameter_groups

    flat = FlatParameters(models.build(config), torch.float32, torch.device("cpu"))
    decayed, others = (
        sum(p.numel() for p in group["params"])  # type: ignore[attr-defined]
        for group in parameter_groups(build(config), 0.05)
    )
    assert (decayed, decayed + others) == (flat.decayed, flat.values.shape[1])


@pytest.mark.parametrize("config", CONFIGS, ids=["mean", "class token", "convnet"])
def test_the_same_dropout(config: ModelConfig) -> None:
    from rival import build

    model = build(config)
    rates = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda module, args, out: rates.append(module.p))
        elif isinstance(module, nn.MultiheadAttention):
            assert module.dropout == VIT.attn_drop
    model(torch.zeros(2, 3, 12, 12))
    assert rates == [config.drop] * (1 if config is CONVNET else 1 + 3 * VIT.depth)


@pytest.mark.parametrize("config", CONFIGS, ids=["mean", "class token", "convnet"])
def test_weights_are_drawn_alike(config: ModelConfig) -> None:
    """By the root mean square of each parameter, of models so wide that chance plays no part."""
    from rival import build

    is_vit = isinstance(config, ViTConfig)
    wide = config.replace(**({"embed_dim": 96} if is_vit else {"widths": (16, 32, 64)}))
    torch.manual_seed(0)
    theirs, ours = build(wide), models.build(wide)
    initialise(ours, Draws((0,), torch.device("cpu"), ("init",)))

    def scatters(model: nn.Module) -> list[float]:
        return sorted(float(p.detach().square().mean().sqrt()) for p in model.parameters())

    torch.testing.assert_close(scatters(theirs), scatters(ours), rtol=0.1, atol=0.0)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 5.0])
def test_the_learning_rate_goes_the_same_way(warmup: float) -> None:
    from conventional import schedule

    config = TrainConfig(epochs=3, warmup_epochs=warmup)
    factor = schedule(config, 7)
    assert [factor(step) for step in range(21)] == pytest.approx(our_schedule(config, 7), abs=1e-9)


@pytest.fixture(params=["fashion-mnist", "cifar-shaped"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """What both sides are measured with, on few images."""
    from generated_images import generated
    from sides import Bench
    from torchvision_images import torchvision_root

    write_idx(tmp_path, train=200)
    is_published = request.param == "fashion-mnist"
    with torchvision_root(tmp_path) if is_published else generated(200) as root:
        yield Bench(
            dataset=request.param,
            root=root,
            data_dir=tmp_path,
            device="cpu",
            workers=1,
            repetitions=1,
            seconds=0.1,
            batch_size=16,
        )


def shown(images: Tensor, kind: Any) -> Tensor:
    """(N, C, H, W) normalised to uint8."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (kind.mean, kind.std))
    return (255 * (images * std + mean)).round().byte()


def test_both_sides_see_the_same_images(bench: Any) -> None:
    from conventional import TRAIN
    from torchvision_images import KINDS, data_loaders

    ours = bench.loaded(train_size=100)
    assert ours.train_fields == {"translate": TRAIN.translate, "flip": TRAIN.flip}
    assert ours.model_fields == {"image_size": 32, "num_classes": 10, **bench.fields}
    images = bench.images(train_size=100)
    config = TRAIN.replace(translate=0, flip=False)
    for split, batches in zip(
        (ours.train, ours.val), data_loaders(images, config, 0, "cpu"), strict=True
    ):
        pairs = [batches.dataset[index] for index in range(len(batches.dataset))]
        seen = shown(torch.stack([image for image, _ in pairs]), KINDS[bench.dataset])
        assert torch.equal(seen, torch.from_numpy(split.images))
        assert [label for _, label in pairs] == split.labels.tolist()


def test_training_images_are_shifted_as_ours_are(bench: Any) -> None:
    from conventional import TRAIN
    from torchvision_images import KINDS, data_loaders

    image = torch.from_numpy(bench.loaded().train.images[0])
    padded = nn.functional.pad(image, (2, 2, 2, 2))
    shifted = [padded[:, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    possible = {bytes(i.numpy().tobytes()) for s in shifted for i in (s, s.flip(-1))}
    batches, _ = data_loaders(bench.images(), TRAIN, 0, "cpu")
    torch.manual_seed(0)
    draws = torch.stack([batches.dataset[0][0] for _ in range(500)])
    seen = {i.numpy().tobytes() for i in shown(draws, KINDS[bench.dataset])}
    assert seen == possible


@pytest.mark.parametrize("name", ["ViT(96, 6, patch 8)", "ConvNet"])
def test_both_sides_learn_the_same_where_nothing_is_left_to_chance(name: str, bench: Any) -> None:
    """From the same weights, with the same batches, and without augmentation and dropout."""
    from conventional import TRAIN, parameter_groups, schedule, train_epoch
    from rival import build
    from sides import MODELS

    rates = {"drop": 0.0, "attn_drop": 0.0} if "ViT" in name else {"drop": 0.0}
    config = MODELS[name].replace(**bench.fields, **rates)
    # No more images than batch norm takes its statistics of.
    train = TRAIN.replace(
        epochs=3, batch_size=GHOST, translate=0, flip=False, precision="float64", weight_decay=0.5
    )
    ours = Pass.of(config, train, to_device(bench.loaded(), torch.device("cpu"), 0))
    theirs = build(config).double()
    theirs.load_state_dict(renamed(ours.model, config), strict=False)  # statistics keep a count
    optimizer = torch.optim.AdamW(parameter_groups(theirs, train.weight_decay), lr=train.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(train, ours.steps_per_epoch))
    val_images = ours.data.normalise(ours.data.val.bordered, torch.float64)
    before = theirs.eval()(val_images)
    for number in range(1, train.epochs + 1):
        batches = batches_of_epoch(ours, number)
        ours.epoch([number])
        train_epoch(theirs, batches, optimizer, scheduler, train)
        with torch.no_grad():
            expected, logits = theirs.eval()(val_images), ours.model.eval()(val_images[None])[0]
        torch.testing.assert_close(logits, expected, rtol=0.0, atol=TOLERANCE)
    assert (expected - before).abs().mean() > 1000 * TOLERANCE


def batches_of_epoch(ours: Pass, number: int) -> list[tuple[Tensor, Tensor]]:
    """The images and labels that this epoch trains on, as a loader gives them."""
    split, size = ours.data.train, ours.config.batch_size
    order = ours.draws.at("epoch", number).permutation(len(split), "order")[0]
    chosen = torch.split(order[: ours.steps_per_epoch * size], size)
    images = ours.data.normalise(split.bordered, torch.float64)
    return [(images[indices], split.labels[indices]) for indices in chosen]


def test_generated_images_are_such_as_one_learns_from(tmp_path: Path) -> None:
    from generated_images import MEAN, STD, CifarShaped, generated

    with generated(4_000) as root, generated(4_000) as again:
        first, second = CifarShaped(root), CifarShaped(again)
    assert (first.data == second.data).all()
    assert first.targets == second.targets
    assert first.data.shape == (4_000, 32, 32, 3)
    values = first.data.reshape(-1, 3) / 255
    assert values.mean(0) == pytest.approx(MEAN, abs=2e-3)
    assert values.std(0) == pytest.approx(STD, abs=2e-3)
    # The mean of each class, from half of them, tells the other half apart.
    pixels, labels = first.data.reshape(4_000, -1) / 255, np.array(first.targets)
    known = np.arange(4_000) < 2_000
    means = np.stack([pixels[known & (labels == label)].mean(0) for label in range(10)])
    scores = pixels[~known] @ means.T - (means**2).sum(1) / 2
    assert (scores.argmax(1) == labels[~known]).mean() == pytest.approx(0.82, abs=0.03)


@pytest.mark.parametrize("space", ["small", "report"])
def test_the_conventional_sweep_draws_from_the_same_space(space: str) -> None:
    from conventional import SEARCH, SPACES, fixed_points

    ours = SEARCH.spaces[space](32)
    assert list(ours["embed_dim"].choices) == SPACES[space]["embed_dim"]
    assert (ours["depth"].low, ours["depth"].high) == SPACES[space]["depth"]
    points = fixed_points(200, space)
    for point in points:
        check_point(point, ours)
    for name in ("patch_size", "embed_dim", "num_heads"):
        assert {point[name] for point in points} == set(ours[name].choices)
    assert {point["depth"] for point in points} == set(range(*SPACES[space]["depth"])) | {
        SPACES[space]["depth"][1]
    }


def test_points_are_those_of_the_curves_that_were_trained() -> None:
    from train_curves import FOLDER, random_point

    lines = [line for path in FOLDER.glob("*.jsonl") for line in path.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    drawn_ones = [row for row in rows if row["index"] > 0]
    assert len(drawn_ones) > 50
    assert all(random_point(row["index"]) == row["point"] for row in drawn_ones)


@pytest.mark.slow
class TestThroughput:
    """Each mode of the script at a tiny size."""

    @staticmethod
    def tables(launcher: Any, folder: Path, *arguments: object) -> list[list[list[str]]]:
        """The cells of each table, without headings, as they were added to a file."""
        write_idx(folder, train=400)
        results = folder / "results.md"
        results.write_text("# Results\n")
        command = (*arguments, "--data-dir", folder, "--repetitions", 1, "--append", results)
        process = launcher.start(BENCHMARKS / "throughput.py", *command).wait(PATIENCE)
        assert (process.status, process.stderr) == (0, "")
        added = results.read_text().removeprefix("# Results\n\n### throughput.py ")
        entry = added.partition("\n\n")[2]
        assert "torch" in entry.splitlines()[0]
        assert process.stdout == entry  # which says all that is printed
        found = []
        for table in entry.split("\n\n")[1:]:
            lines = table.splitlines()[2:]
            found.append([[c.strip() for c in line.strip("|").split("|")] for line in lines])
        return found

    def rows(self, launcher: Any, folder: Path, *arguments: object) -> list[list[str]]:
        (table,) = self.tables(launcher, folder, *arguments)
        return table

    FAST = ("--seconds", 0.1, "--batch-size", 16, "--models", "ViT(64, 6, patch 16)")

    @pytest.mark.parametrize("dataset", ["fashion-mnist", "cifar-shaped"])
    def test_configs(self, launcher: Any, tmp_path: Path, dataset: str) -> None:
        of_these = ("--dataset", dataset, "--images", 1_000)
        rows = self.rows(launcher, tmp_path, "configs", *self.FAST, *of_these)
        assert [row[1].split(",")[0] for row in rows] == [
            "conventional",
            "conventional",
            "visweep",
            "the peak itself",
        ]
        assert rows[0][3] == "1.00 (1.00–1.00)"
        assert all(float(row[4].removesuffix(" %")) > 0 for row in rows)

    def test_nothing_is_added_where_it_is_not_to_be(self, launcher: Any, tmp_path: Path) -> None:
        write_idx(tmp_path, train=400)
        before = (BENCHMARKS / "RESULTS.md").read_bytes()
        process = launcher.start(
            BENCHMARKS / "throughput.py", "seeds", *self.FAST, "--replicas", 2,
            "--data-dir", tmp_path, "--repetitions", 1, "--append=",
        ).wait(PATIENCE)  # fmt: skip
        assert (process.status, process.stderr) == (0, "")
        assert "| ViT(64, 6, patch 16) |" in process.stdout
        assert (BENCHMARKS / "RESULTS.md").read_bytes() == before

    def test_seeds(self, launcher: Any, tmp_path: Path) -> None:
        (row,) = self.rows(launcher, tmp_path, "seeds", *self.FAST, "--replicas", 2)
        assert 0.5 < float(row[3].split()[0]) < 5.0

    def test_lanes(self, launcher: Any, tmp_path: Path) -> None:
        rows = self.rows(launcher, tmp_path, "lanes", *self.FAST, "--counts", 1, 2)
        assert [row[1] for row in rows] == [
            "1 in one process", "1 processes", "2 in one process", "2 processes"
        ]  # fmt: skip
        # On the CPU they take turns, and gain nothing by that.
        assert all(float(row[2].split()[0].replace(",", "")) > 0 for row in rows)

    def test_sweep(self, launcher: Any, tmp_path: Path) -> None:
        small = ("--trials", 2, "--epochs", 2, "--train-size", 64, *self.FAST[:4])
        turns, sides = self.tables(launcher, tmp_path, "sweep", *small)
        assert [row[1].split(",")[0] for row in turns] == ["conventional", "visweep"]
        assert all(0 < float(row[4].removesuffix(" %")) < 50 for row in turns)
        per_hour = [float(row[3]) for row in turns]
        assert [float(row[1].split()[0]) for row in sides] == per_hour
        assert float(sides[1][2].split()[0]) == pytest.approx(per_hour[1] / per_hour[0], abs=0.01)

    def test_sweep_of_the_report_s_space(self, launcher: Any, tmp_path: Path) -> None:
        small = ("--trials", 2, "--epochs", 1, "--train-size", 64, *self.FAST[:4])
        other = ("--space", "report", "--dataset", "cifar-shaped", "--images", 400)
        packed = (*other, "--auto", "--pack", 2)
        rows, _ = self.tables(launcher, tmp_path, "sweep", *small, *packed)
        assert [row[1] for row in rows][1] == "visweep, automatic workers of 2 trials"
        assert all(0 < float(row[4].removesuffix(" %")) < 50 for row in rows)

    @pytest.mark.parametrize("mode", ["accuracy", "precision"])
    def test_accuracies(self, launcher: Any, tmp_path: Path, mode: str) -> None:
        small = ("--runs", 2, "--epochs", 1, "--train-size", 64, *self.FAST)
        (row,) = self.rows(launcher, tmp_path, mode, *small)
        assert row[4] in ("shown", "not shown")

    def test_what_is_cut_off_has_left_the_rows_it_measured(
        self, launcher: Any, tmp_path: Path, wait_for: Callable[..., None]
    ) -> None:
        write_idx(tmp_path, train=400)
        results = tmp_path / "results.md"
        models = ("--models", "ViT(64, 6, patch 16)", "ConvNet")
        process = launcher.start(
            BENCHMARKS / "throughput.py", "seeds", *self.FAST[:4], *models, "--replicas", 2,
            "--data-dir", tmp_path, "--repetitions", 1, "--append", results,
        )  # fmt: skip
        wait_for(lambda: results.exists() and "| ViT(64" in results.read_text(), PATIENCE, process)
        process.kill()
        assert results.read_text().splitlines()[-1].startswith("| ViT(64, 6, patch 16) |")
