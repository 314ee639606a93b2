"""The database's own clock, so that whoever looks compares no clocks of two machines."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles


class seconds_now(sa.sql.functions.FunctionElement[float]):  # an SQL function
    """Seconds since 1970 by the clock of the machine that holds the database."""

    type = sa.Double()
    inherit_cache = True


@compiles(seconds_now, "sqlite")
def _in_sqlite(element: seconds_now, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(seconds_now, "postgresql")
def _in_postgresql(element: seconds_now, compiler: Any, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"
