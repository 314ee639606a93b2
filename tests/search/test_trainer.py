"""The shared trainer gives back what one trial took, before the next one begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# The first run loads what every run needs; the second one's activations take hundreds of MiB.
CHILD = """
import sys
from pathlib import Path
import torch
from visweep import data
from visweep.config import DataConfig, TrainConfig, ViTConfig
from visweep.data.resident import to_device
from visweep.search.trainer import SharedTrainer

def held():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) >> 10

torch.set_num_threads(1)
images = data.load(DataConfig(train_size=64))
trainer = SharedTrainer(to_device(images, torch.device("cpu")))
train = TrainConfig(epochs=1, precision="float32")
for model in (
    ViTConfig(in_chans=1, num_classes=10, patch_size=16, embed_dim=32, depth=1, num_heads=2),
    ViTConfig(in_chans=1, num_classes=10, patch_size=4, embed_dim=96, depth=6, num_heads=8),
):
    before = held()
    checkpoint = Path(sys.argv[1]) / f"{model.patch_size}.ckpt"
    trainer.fit(model, train, on_epoch=lambda _: False, checkpoint=checkpoint)
print(held() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks the Linux kernel")
def test_a_large_trial_leaves_no_memory_behind(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) < 100  # MiB
