"""The accuracy of a configuration on new images, from runs with several seeds.

Two kinds of chance are in such a number: training again would give other models, and other images
would be easier or harder. An interval that knows only one of them is too short.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from visweep.analysis.statistics.paired import CONFIDENCE
from visweep.analysis.statistics.sampling import mean_error


@dataclass(frozen=True)
class Generalisation:
    """The mean accuracy over seeds, on images that were drawn like those that new ones will be.

    Attributes:
        accuracy: fraction, mean over seeds and images.
        low, high: 95 % interval, over seeds and images; fractions between 0 and 1. None of one
            seed, which cannot tell how far others are.
        seed_error: standard error of the mean by the choice of seeds, in points; None of one seed.
        image_error: the same by the choice of images.
        seeds: how many runs.
        images: how many.
        groups: how many independent sources the images have.
    """

    accuracy: float
    low: float | None
    high: float | None
    seed_error: float | None
    image_error: float
    seeds: int
    images: int
    groups: int


def generalisation(correct: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> Generalisation:
    """What runs on the same images say of the configuration.

    Both errors are added as variances. What varies with run and image at once is in both, so that
    the interval is a little too long, by less than a hundredth where there are a hundred images.
    The degrees of freedom are those of F. Satterthwaite (1946), An approximate distribution of
    estimates of variance components, Biometrics Bulletin 2, 110-114.

    Args:
        correct: (seeds, images) whether each was classified correctly by each run.
        groups: (images,) what each image was made from; without, each is a group of its own.

    Raises:
        ValueError: the shapes do not fit, or there are fewer than two independent images.
    """
    right = np.asarray(correct, np.float64)
    if right.ndim != 2 or not right.size:
        raise ValueError(f"runs times images are needed, not {right.shape}")
    seeds, images = right.shape
    independent = images if groups is None else len(np.unique(np.asarray(groups)))
    image_error = mean_error(right.mean(0), groups)
    mean = float(right.mean())
    if seeds < 2:
        return Generalisation(mean, None, None, None, image_error, seeds, images, independent)
    seed_error = 100 * float(right.mean(1).std(ddof=1)) / sqrt(seeds)
    half = _half(seed_error, seeds - 1, image_error, independent - 1) / 100
    return Generalisation(
        accuracy=mean,
        low=max(0.0, mean - half),
        high=min(1.0, mean + half),
        seed_error=seed_error,
        image_error=image_error,
        seeds=seeds,
        images=images,
        groups=independent,
    )


def _half(one: float, freedom: int, other: float, other_freedom: int) -> float:
    """Half the interval of a mean with two independent errors."""
    variance = one**2 + other**2
    if variance == 0:
        return 0.0
    effective = variance**2 / (one**4 / freedom + other**4 / other_freedom)
    return float(stdtrit(effective, (1 + CONFIDENCE) / 2)) * sqrt(variance)
