"""Which images trained models classify correctly, one by one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from visweep.data.dataset import Split
from visweep.data.resident import ResidentData
from visweep.training.evaluate import predict

_BATCH = 256


@torch.no_grad()
def correct(
    models: Iterable[nn.Module], data: ResidentData, split: Split
) -> npt.NDArray[np.bool_]:
    """Whether each image is classified correctly by each model: (models, images).

    In float32, with the plain transform and dropout off.

    Args:
        models: of one replica each, in evaluation mode; moved to the device of the data.
        data: what they were trained on, which tells how pixels are scaled.
        split: the images, as large as those.
    """
    labels = torch.from_numpy(split.labels)
    rows = []
    for model in models:
        there = model.to(data.device)
        found = [
            predict(there, data, batch.to(data.device), 1, torch.float32)[0].argmax(-1).cpu()
            for batch in torch.split(torch.from_numpy(split.images), _BATCH)
        ]
        rows.append((torch.cat(found) == labels).numpy())
    return np.stack(rows)
