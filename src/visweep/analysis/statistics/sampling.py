"""How far an accuracy might be from that on other validation images.

The standard errors here are in percentage points, and are 0 where all images agree (all right, or
all wrong), where they tell nothing. They are no part of a verdict, which compares runs on the same
images: they say how far the images themselves can be trusted.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt


def binomial_error(accuracy: float, images: int) -> float:
    """Standard error, in points, of an accuracy (a fraction) from independent images.

    Raises:
        ValueError: the accuracy is not between 0 and 1, or there is no image.
    """
    if not 0 <= accuracy <= 1 or images < 1:
        raise ValueError("an accuracy is a fraction, of one image at least")
    return 100 * sqrt(accuracy * (1 - accuracy) / images)


def mean_error(values: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> float:
    """Standard error, in points, of the mean of one value per image.

    Images of one group may resemble each other in any way; groups are independent. With a group
    for each image it is the usual error of a mean. K. Liang and S. Zeger (1986), Longitudinal data
    analysis using generalized linear models, Biometrika 73, 13-22, times groups / (groups - 1),
    since few groups make it too small. Fewer than about 30 groups are still too few to trust it.

    Args:
        values: (images,) whether each was classified correctly, or in which share of the runs.
        groups: (images,) what each image was made from; without, each is a group of its own.

    Raises:
        ValueError: the arrays are not of one length, a value is not finite, or there are fewer
            than two groups.
    """
    given = np.asarray(values, np.float64)
    ids = np.arange(len(given)) if groups is None else np.asarray(groups)
    if given.ndim != 1 or given.shape != ids.shape:
        raise ValueError(f"one group per image is needed: {given.shape} and {ids.shape}")
    if not np.isfinite(given).all():
        raise ValueError("every image needs a value")
    names, group = np.unique(ids, return_inverse=True)
    if len(names) < 2:
        raise ValueError("two independent groups of images are needed at least")
    sums = np.bincount(group, weights=given - given.mean())
    variance = len(names) / (len(names) - 1) * float(sums @ sums)
    return 100 * sqrt(variance) / len(given)


def difference_error(
    baseline: npt.ArrayLike, changed: npt.ArrayLike, groups: npt.ArrayLike | None = None
) -> float:
    """Standard error, in points, of the difference of two accuracies on the same images.

    What both get right or wrong cancels, so that it is mostly smaller than either's own error.

    Args:
        baseline: (images,) as `values` of `mean_error`.
        changed: the same of the changed runs, images in the same order.
        groups: as in `mean_error`.

    Raises:
        ValueError: as `mean_error`, or the two are not of one length.
    """
    before, after = np.asarray(baseline, np.float64), np.asarray(changed, np.float64)
    if before.shape != after.shape:
        raise ValueError(f"both need the same images: {before.shape} and {after.shape}")
    return mean_error(after - before, groups)
