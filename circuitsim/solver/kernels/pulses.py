"""Pulses on programmable devices, one after the other, each along the device's own update curve.

In w = -1 ... 1 over the conductance window a pulse moves a device by

    up      +step_up   f,  f = 1 - slope_up w
    down    -step_down f,  f = 1 + slope_down w

or, exponential, f = max(1 - amplitude exp(+-rate (a w + b)), 0); plus its own noise N(0, 1) times
``noise``, in units of the whole step there (``multiplicative``) or of the device's step without f. Steps
end at the device's bounds.
"""

from __future__ import annotations

import math

from circuitsim.solver.kernels.compiling import strict

__all__ = ["pulse_rows"]


@strict
def pulse_rows(  # type: ignore[no-untyped-def]
    first,
    last,
    w,
    counts,
    begin,
    normals,
    step_up,
    step_down,
    slope_up,
    slope_down,
    low,
    high,
    exponential,
    noise,
    multiplicative,
):
    """Move w (M, N) by ``counts`` (M, N) pulses, in rows first to last.

    ``normals`` holds one draw per pulse, those of row j from ``begin[j]`` on; it is empty without noise.
    ``exponential`` is empty, or amplitude_up, amplitude_down, rate_up, rate_down, a, b.
    """
    for j in range(first, last):
        place = begin[j]
        for i in range(w.shape[1]):
            count = counts[j, i]
            x = w[j, i]
            up = count > 0
            for _ in range(abs(count)):
                if len(exponential) > 0:
                    z = exponential[4] * x + exponential[5]
                    if up:
                        f = 1 - exponential[0] * math.exp(exponential[2] * z)
                    else:
                        f = 1 - exponential[1] * math.exp(-exponential[3] * z)
                    f = max(f, 0.0)
                elif up:
                    f = 1 - slope_up[j, i] * x
                else:
                    f = 1 + slope_down[j, i] * x
                move = step_up[j, i] * f if up else -step_down[j, i] * f
                if noise > 0:
                    own = abs(move) if multiplicative else (step_up[j, i] if up else step_down[j, i])
                    move += noise * own * normals[place]
                    place += 1
                x = min(max(x + move, low[j, i]), high[j, i])
            w[j, i] = x
