"""What passes take on a GPU, roughly: by this they get their turns where several share one, and
elsewhere, where only the order of their epochs follows from it.

Not what a calibration says: that is made anew now and then, and the order of turns is to stay as
it is. Where it is wrong by some factor, one pass has work in its queue when another has none.
"""

from __future__ import annotations

from collections.abc import Sequence

from visweep.config import ModelConfig, TrainConfig
from visweep.training.amounts import amounts, priced
from visweep.training.estimate import Images, evaluations

_LAUNCHED = {"passes": 1e-4, "blocks": 1.2e-4, "convolutions": 3e-5}
"""Seconds of a replayed step: some 2.4 microseconds a kernel, of which a block has 50. A pass over
several models has hardly more kernels than that over the one with the most."""
_COMPUTED = {"multiply-adds": 6e-14, "attention": 6e-14, "elements": 3e-12, "scores": 3e-12}
"""Seconds of a step: at 100 TFLOP/s, forward and twice that backward, and at some TB/s."""
_FORWARD = 1 / 3
"""Of a step: its forward pass."""


def seconds_of_a_piece(
    configurations: Sequence[tuple[ModelConfig, TrainConfig]], images: Images
) -> float:
    """Of `Pass.pieces`, on the mean of an epoch.

    Args:
        configurations: of the runs that share the pass.
        images: that an epoch goes over.
    """
    counted = [
        amounts(model, train.batch_size, len(train.seeds), training=True, threads=0)
        for model, train in configurations
    ]
    step = max(priced(each, _LAUNCHED) for each in counted)
    step += sum(priced(each, _COMPUTED) for each in counted)
    _, train = configurations[0]
    steps, evaluated = images.train // train.batch_size, evaluations(train, images)
    epoch = steps + _FORWARD * sum(evaluated) / train.batch_size
    return step * epoch / max(1, steps + len(evaluated))
