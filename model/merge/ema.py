"""The exponential moving average of checkpoints in the order in which they were saved."""

from __future__ import annotations

from dataclasses import dataclass

from ...data.types import DataError
from .types import Linear


@dataclass(frozen=True)
class Ema(Linear):
    """e_1 = θ_1, e_t = d e_{t-1} + (1 - d) θ_t; the last e is the result. Oldest model first.

    In closed form θ_1 has d^(n-1) and θ_t (1 - d) d^(n-t), so it is merged in one pass.
    """

    decay: float = 0.5

    def coefficients(self, count: int) -> tuple[float, ...]:
        d = self.decay
        if not 0 <= d <= 1:
            raise DataError(f"decay={d}: expected 0 (the last model alone) to 1 (the first alone)")
        return (d ** (count - 1), *((1 - d) * d ** (count - t) for t in range(2, count + 1)))
