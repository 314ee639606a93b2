"""What the tests of short memory run in a process of its own: `memory_child.py MODEL ROOM`.

Prints JSON: what became of a run in a process that may take ROOM MiB beyond what it held.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visweep.config import ConvNetConfig, ModelConfig, TrainConfig, ViTConfig
from visweep.data.dataset import Dataset, Split, fingerprint
from visweep.data.resident import to_device
from visweep.errors import OutOfMemory
from visweep.training.fit import fit

# A whole batch takes about 500 MiB of either: attention over 64 heads, wide feature maps.
MODELS: dict[str, ModelConfig] = {
    "vit": ViTConfig(
        image_size=8,
        num_classes=2,
        patch_size=1,
        embed_dim=64,
        depth=2,
        num_heads=64,
        attn_drop=0.1,
    ),
    "convnet": ConvNetConfig(image_size=32, num_classes=2, widths=(32,), depths=(6,)),
}
TRAIN = TrainConfig(epochs=1, precision="float32", translate=0)
BATCH = {"vit": 64, "convnet": 128}
TINY = {"vit": {"num_heads": 1, "depth": 1}, "convnet": {"widths": (2,), "depths": (1,)}}


def noise(size: int) -> Dataset:
    rng = np.random.default_rng(0)
    parts = [
        Split(rng.integers(0, 256, (n, 1, size, size), dtype=np.uint8), rng.integers(0, 2, n))
        for n in (256, 64)
    ]
    return Dataset("noise", ("a", "b"), parts[0], parts[1], fingerprint(parts[0].images), False)


def held() -> int:
    """Bytes of this process that count for the limit."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return next(1024 * int(words[1]) for words in lines if words[0] == "VmData:")


def trained(name: str, room: int | None) -> dict[str, Any]:
    """What became of a run that may take `room` MiB."""
    train = TRAIN.replace(batch_size=BATCH[name])
    if room is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (held() + room * 2**20, resource.RLIM_INFINITY))
    try:
        result = fit(MODELS[name], train, data, device="cpu")
    except OutOfMemory as e:
        return {"error": str(e), "cause": type(e.__cause__).__name__}
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
    last = result.history[-1]
    return {
        "micro_batch": result.micro_batch,
        "losses": [last.train_loss[0], last.val_loss[0]],
        "peak": result.peak_memory >> 20,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = sys.argv[1]
    data = to_device(noise(MODELS[model].image_size), torch.device("cpu"), 0)
    # What the first run of a process loads is no matter of its size.
    tiny = MODELS[model].replace(**TINY[model])
    fit(tiny, TRAIN.replace(batch_size=32), data, device="cpu")
    room = sys.argv[2]
    print(json.dumps(trained(model, None if room == "all" else int(room))))
