"""How a process makes its trainer. It imports torch when it is called, and not before."""

from __future__ import annotations

from dataclasses import dataclass

from visweep.data.dataset import Dataset
from visweep.data.shared import SharedData
from visweep.search.worker import Trainer
from visweep.training.estimate import Calibration
from visweep.training.room import Room


@dataclass(frozen=True, kw_only=True)
class TrainerMaker:
    """Makes the trainer of the process that calls it; can be passed to one that is being started.

    Attributes:
        images: a data set of this process alone, or one that several share.
        margin: largest translation of a training image, in pixels.
        device: that trains.
        threads: of the processor, that it uses.
        room: what each of its passes may take; None where that is not known.
        on_gpu: estimates what passes take there, where the GPU itself tells how much that may be.
    """

    images: Dataset | SharedData
    margin: int
    device: str
    threads: int
    room: Room | None = None
    on_gpu: Calibration | None = None

    def __call__(self) -> Trainer:
        import torch

        from visweep.data.resident import to_device
        from visweep.search.trainer import SharedTrainer
        from visweep.training.device import use

        torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        use(device)
        if isinstance(self.images, Dataset):
            data = to_device(self.images, device, self.margin)
        else:
            data = self.images.to(device)
        return SharedTrainer(data, self.room, self.on_gpu)
