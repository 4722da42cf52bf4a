"""How the report writes numbers."""

from __future__ import annotations

import math
from typing import TypeGuard


def plus_minus(value: float, error: float | None) -> str:
    """A score with one standard error, three decimals both."""
    return f"{value:.3f} ± {'unknown' if error is None else f'{error:.3f}'}"


def signed(value: float) -> str:
    """A difference, three decimals; only zero, as far as floats can tell, has no sign."""
    value = round(value, 12)
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{abs(value):.3f}"


def interval(low: float, high: float) -> str:
    """The bounds of a difference, three decimals."""
    return f"[{signed(low)}, {signed(high)}]"


def p_value(p: float | None) -> str:
    """Three decimals; a dash where there is none."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float) -> str:
    """Two significant digits, whole numbers from 100 % on, an exponent below 0.001 %."""
    value = 100 * share
    if not finite(value) or value == 0:
        return f"{value:.0f}\u00a0%"
    if abs(value) < 1e-3:
        return f"{value:.1e}\u00a0%"
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}\u00a0%"


def finite(value: float | None) -> TypeGuard[float]:
    """There is a number, neither infinite nor NaN."""
    return value is not None and math.isfinite(value)


def decimals(extent: float) -> int:
    """How many decimals tell apart numbers of a scale that reaches so far from zero: 2 up to 1, 3 up to 0.1."""
    return min(6, max(0, 1 - math.floor(math.log10(0.999 * extent)))) if extent > 0 else 2


def plain(value: float, places: int) -> str:
    """A number with so many decimals and a true minus; one that rounds to zero has no sign."""
    text = f"{value:.{places}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")
