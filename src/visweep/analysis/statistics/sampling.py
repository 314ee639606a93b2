"""How far an accuracy might be from that on other validation images.

The standard errors here are in percentage points, and are 0 where all images agree (all right, or
all wrong), where they tell nothing. They are no part of a verdict, which compares runs on the same
images: they say how far the images themselves can be trusted.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt

from visweep.data.sampling import mean_error

__all__ = ["binomial_error", "difference_error", "mean_error"]


def binomial_error(accuracy: float, images: int) -> float:
    """Standard error, in points, of an accuracy (a fraction) from independent images.

    Raises:
        ValueError: the accuracy is not between 0 and 1, or there is no image.
    """
    if not 0 <= accuracy <= 1 or images < 1:
        raise ValueError("an accuracy is a fraction, of one image at least")
    return 100 * sqrt(accuracy * (1 - accuracy) / images)


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
