"""Numbers with SPICE suffixes: `10k`, `2meg`, `1u`, `100mV`; and back again for people to read."""

from __future__ import annotations

import math
import re

from circuitsim.errors import SpecError

__all__ = ["UNITS", "engineering", "parse_quantity", "spice_number"]

# SPICE is case-blind: M is milli and MEG is 1e6. YAML 1.1 reads `1e-3` as a string, so strings
# must be understood even where no suffix is used.
_EXPONENT = {"t": 12, "g": 9, "meg": 6, "k": 3, "": 0, "m": -3, "u": -6, "µ": -6, "μ": -6}
_EXPONENT |= {"n": -9, "p": -12, "f": -15, "a": -18}
_MIL = 25.4e-6
UNITS = ("ohm", "hz", "s", "v", "a", "f", "w", "h")
_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Zµμ]*)\s*")
_SPICE_NUMBER = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[ed]([+-]?[0-9]+))?([a-zµμ\u2126\u03c9°%]*)"
)
_SPICE_SCALES = {k: v for k, v in _EXPONENT.items() if len(k) == 1 and k != "a"}
_MOST_EXPONENT_DIGITS = 4
_PREFIXES = [
    (10.0 ** (12 - 3 * k), prefix)
    for k, prefix in enumerate(("T", "G", "M", "k", "", "m", "u", "n", "p", "f", "a"))
]


def parse_quantity(value: object) -> float:
    """Return ``value`` as a float in SI units.

    Accepts a number or text with a SPICE suffix and, after it, an optional unit: ``10k``,
    ``2meg``, ``1u``, ``100mV``, ``4.7kohm``. As in SPICE, ``M`` is milli, and a lone
    ``f`` or ``a`` is femto or atto.

    Raises:
        SpecError: not a number, an unknown suffix, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise SpecError("must be a number, with a SPICE suffix if you like", value=value)
    if isinstance(value, str):
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise SpecError("is not a number", value=value, remedy="Write for example 10k, 2meg, 1u, 1e-3.")
        result = _scaled(match[1], match[2].lower(), value)
    else:
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not math.isfinite(result):
        raise SpecError("must be finite", value=value)
    return result


def _scaled(number: str, suffix: str, text: str) -> float:
    names = [suffix, *(suffix[: -len(unit)] for unit in UNITS if suffix.endswith(unit))]
    for name in names:
        if name in _EXPONENT:
            # Shifting the exponent rounds once: 20u is 2e-05 to the last bit.
            mantissa, _, exponent = number.lower().partition("e")
            return float(f"{mantissa}e{int(exponent or 0) + _EXPONENT[name]}")
        if name == "mil":
            return float(number) * _MIL
    known = " ".join(name for name in _EXPONENT if name)
    raise SpecError("has an unknown suffix", value=text, remedy=f"Known suffixes: {known} mil.")


def spice_number(word: str) -> float | None:
    """Return a lower-case number as a SPICE deck means it, or None if the word is none.

    ``1k``, ``2meg``, ``10pf``, ``5volts``: letters after the scale are a unit, whatever they are; ``m`` is
    milli, ``f`` femto. What programs read differently is none: ``1x`` (1e6 or 1) and ``1k5``.
    """
    match = _SPICE_NUMBER.fullmatch(word)
    if match is None:
        return None
    digits, exponent, letters = match.groups()
    if exponent and len(exponent) > _MOST_EXPONENT_DIGITS:
        return None
    power, scale = int(exponent or 0), 1.0
    if letters.startswith("meg"):
        power += 6
    elif letters.startswith("mil"):
        scale = _MIL
    elif letters.startswith("x"):
        return None
    elif letters:
        power += _SPICE_SCALES.get(letters[0], 0)
    # Shifting the exponent rounds once: 20u is 2e-05 to the last bit.
    value = float(f"{digits}e{power}") * scale
    return value if math.isfinite(value) else None


def engineering(value: float, unit: str = "", digits: int = 4) -> str:
    """Return ``value`` with an SI prefix: ``engineering(2.5e-5, "S")`` is ``'25 uS'``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    size = abs(value)
    for scale, prefix in _PREFIXES:
        if size >= scale * (1 - 0.5 * 10.0**-digits):
            return f"{value / scale:.{digits}g} {prefix}{unit}".rstrip()
    return f"{value:.{digits}g} {unit}".rstrip()
