"""Holm's adjustment of p-values for several tests.

S. Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of
Statistics 6, 65-70.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from visweep.analysis.statistics.paired import Floats


def adjust(p_values: npt.ArrayLike) -> Floats:
    """The adjusted p-values of tables (…, rows), in the order given.

    Calling a difference shown wherever the adjusted value is below 0.05 claims anything false in
    at most 5 % of tables, however the rows depend on each other, as rows that share a baseline do.
    A row without a p-value (NaN) stays without, and still counts as one of the table: otherwise a
    run that fails would make the others' verdicts easier.
    """
    given = np.asarray(p_values, np.float64)
    filled = np.where(np.isnan(given), 1.0, given)
    order = np.argsort(filled, axis=-1, kind="stable")
    steps = np.arange(given.shape[-1], 0, -1)
    raised = np.maximum.accumulate(np.take_along_axis(filled, order, -1) * steps, axis=-1)
    adjusted = np.empty_like(filled)
    np.put_along_axis(adjusted, order, np.minimum(raised, 1.0), -1)
    return np.where(np.isnan(given), np.nan, adjusted)
