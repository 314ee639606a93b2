"""How far a mean over images might be from that over other images of the same kind."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt


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
