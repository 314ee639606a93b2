"""What no trial of a study may exceed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Largest values that the search proposes; None where there is no limit.

    Attributes:
        max_params: parameters of one replica.
        max_flops: floating-point operations of one forward pass of one image, two a multiply-add.
        max_epoch_seconds: of training and validation, as `judge` estimates them.
        judge: how seconds are estimated; JSON values, see `visweep.search.bounds`. It is stored in
            the study when that is created, so that every machine judges alike, and is no part of
            what the study is.
    """

    max_params: int | None = None
    max_flops: int | None = None
    max_epoch_seconds: float | None = None
    judge: Mapping[str, Any] | None = field(default=None, compare=False)

    def given(self) -> dict[str, float]:
        """Those that there are, by field."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.compare}
        return {name: value for name, value in values.items() if value is not None}

    def with_judge(self, judge: Mapping[str, Any] | None) -> Limits:
        """The same limits, judged in another way."""
        return dataclasses.replace(self, judge=judge)


NO_LIMITS = Limits()


def option(name: str) -> str:
    """The option that sets a limit, by its field."""
    return f"--{name.replace('_', '-')}"
