"""Model cards: what `.model` lines make of the elements that name them.

Formulas: the ngspice manual, chapters 3 (resistor, capacitor, inductor), 3.1.12 (switches) and 7 (diode), and
its source of the diode's temperature dependence where the manual is short; the PSpice reference guide for the
smooth switch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from circuitsim.netlist.models import BOLTZMANN, CHARGE
from circuitsim.spice.fields import read_fields, words_of
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.parameters import Scope

__all__ = [
    "DiodeValues",
    "Model",
    "Temperatures",
    "diode_values",
    "scaled_by_temperature",
    "switch_conductance",
]

_KELVIN = 273.15
_REFERENCE = 27.0 + _KELVIN
_TYPES = {"r": "r", "res": "r", "c": "c", "cap": "c", "l": "l", "ind": "l", "d": "d"}
_TYPES |= {"sw": "sw", "switch": "sw", "csw": "csw", "vswitch": "vswitch", "iswitch": "iswitch"}
_SUPPORTED = "D, R, C, L, SW, CSW, VSWITCH, ISWITCH"


@dataclass(frozen=True, kw_only=True)
class Temperatures:
    """The circuit's temperature and the one that models are given for [C]."""

    circuit: float = 27.0
    nominal: float = 27.0


class Model:
    """A model card in the scope that it is read in; its parameters are worked out once."""

    def __init__(self, line: Line, scope: Scope) -> None:
        _, self.name, kind, *words = words_of(line)
        self.line = line
        if kind not in _TYPES:
            remedy = f"Supported: {_SUPPORTED}."
            raise problem(line, "is a kind of model that is not supported", value=kind, remedy=remedy)
        fields = read_fields(line, words)
        if fields.words:
            raise problem(line, "is not a parameter with a value", object=self.name, value=fields.words[0])
        self.kind = _TYPES[kind]
        self.parameters = {name: scope.number(line, word, name) for name, word in fields.named.items()}

    def take(self, known: Mapping[str, float], ignored: frozenset[str] = frozenset()) -> dict[str, float]:
        """Return the parameters with defaults for those not given.

        Raises:
            NetlistError: a parameter that is neither known nor ignored.
        """
        for name in self.parameters:
            if name not in known and name not in ignored:
                raise problem(
                    self.line,
                    "is no parameter that is supported for this kind of model",
                    object=self.name,
                    value=name,
                    remedy=f"Supported: {' '.join(sorted(known))}.",
                )
        return {name: self.parameters.get(name, default) for name, default in known.items()}


def scaled_by_temperature(given: Mapping[str, float], rise: float) -> float:
    """Return ``1 + tc1*rise + tc2*rise^2``, times ``1.01^(tce*rise)``; ``rise`` [K] over the nominal."""
    first, second, exponential = (given.get(name, 0.0) for name in ("tc1", "tc2", "tce"))
    factor = 1.0 + first * rise + second * rise * rise
    return factor * 1.01 ** (exponential * rise) if exponential else factor


@dataclass(frozen=True, slots=True)
class DiodeValues:
    """The columns of the diode table, and ``series_resistance`` [ohm], 0 for none."""

    saturation_current: float
    slope_voltage: float
    breakdown_voltage: float
    breakdown_slope: float
    junction_capacitance: float
    junction_potential: float
    grading: float
    depletion_limit: float
    transit_time: float
    series_resistance: float


_DIODE: Mapping[str, float] = {
    "level": 1.0,
    "is": 1e-14,
    "n": 1.0,
    "rs": 0.0,
    "bv": math.inf,
    "ibv": 1e-3,
    "nbv": math.nan,
    "cjo": 0.0,
    "vj": 1.0,
    "m": 0.5,
    "fc": 0.5,
    "tt": 0.0,
    "eg": 1.11,
    "xti": 3.0,
    "tnom": math.nan,
    "trs1": 0.0,
    "trs2": 0.0,
    "tcv": 0.0,
    "tbv1": 0.0,
    "tbv2": 0.0,
    "area": 1.0,
}
_DIODE_SYNONYMS = {
    "js": "is",
    "cj0": "cjo",
    "cj": "cjo",
    "pb": "vj",
    "mj": "m",
    "tref": "tnom",
    "trs": "trs1",
    "vb": "bv",
    "vrb": "bv",
    "ib": "ibv",
    "nz": "nbv",
}
# Noise, power ratings, and the side wall, which counts only with an instance's PJ; what goes with a
# parameter that is nothing.
_DIODE_IGNORED = frozenset({"kf", "af", "jsw", "ns", "cjsw", "cjp", "php", "vjsw", "mjsw", "fcs", "vp", "pj"})
_DIODE_IGNORED |= {"fv_max", "bv_max", "id_max", "te_max", "pd_max", "rth0", "cth0"}
_DIODE_IGNORED |= {"nr", "ntun", "xtitun", "keg", "nbvl", "tikf", "ctp", "tphp"}
# What changes the current or the charge, unless it has one of these values.
_DIODE_OFF: Mapping[str, tuple[float, ...]] = {
    **dict.fromkeys(("ikf", "ik", "ikr", "ikp"), (0.0, math.inf)),
    **dict.fromkeys(("isr", "jtun", "jtunsw", "ibvl", "tlev", "tlevc"), (0.0,)),
    **dict.fromkeys(("cta", "ctc", "tpb", "tvj", "tm1", "tm2", "ttt1", "ttt2"), (0.0,)),
}


def diode_values(
    model: Model,
    *,
    temperature: float,
    nominal: float,
    tolerance: float,
    area: float | None = None,
    multiplier: float = 1.0,
) -> DiodeValues:
    """Return what a diode, or ``multiplier`` of them in parallel, is at ``temperature`` [C].

    ``tolerance`` is the option ``reltol``. As in ngspice, ``area`` does not scale the current IBV that says
    where the breakdown is.

    Raises:
        NetlistError: a parameter that is unknown, out of range, or asks for another model of a diode.
    """
    p = _diode_parameters(model)
    t_nominal = (nominal if math.isnan(p["tnom"]) else p["tnom"]) + _KELVIN
    t = temperature + _KELVIN
    if t <= 0 or t_nominal <= 0:
        raise problem(model.line, "is at or below absolute zero", object=model.name, value=temperature)
    area = p["area"] if area is None else area
    if area <= 0:
        raise problem(model.line, "must be positive", object=model.name, field="area", value=area)
    vt = BOLTZMANN * t / CHARGE
    ratio = t / t_nominal
    saturation = p["is"] * area
    if ratio != 1.0:
        exponent = (ratio - 1) * p["eg"] / (p["n"] * vt) + p["xti"] / p["n"] * math.log(ratio)
        saturation *= math.exp(min(exponent, 700.0))
    potential, capacitance = _junction_at(p, t, t_nominal)
    rise = t - t_nominal
    breakdown = p["bv"]
    if math.isfinite(breakdown):
        breakdown = breakdown * (1 + p["tbv1"] * rise + p["tbv2"] * rise * rise) - p["tcv"] * rise
        breakdown = _breakdown_voltage(model, breakdown, p["ibv"], saturation, vt, p["nbv"] * vt, tolerance)
    size = area * multiplier
    resistance = p["rs"] / size * (1 + p["trs1"] * rise + p["trs2"] * rise * rise)
    return DiodeValues(
        saturation_current=saturation * multiplier,
        slope_voltage=p["n"] * vt,
        breakdown_voltage=breakdown,
        breakdown_slope=p["nbv"] * vt if math.isfinite(breakdown) else 1.0,
        junction_capacitance=capacitance * size,
        junction_potential=potential,
        grading=p["m"],
        depletion_limit=p["fc"],
        transit_time=p["tt"],
        series_resistance=resistance,
    )


def _diode_parameters(model: Model) -> dict[str, float]:
    for name, synonym in _DIODE_SYNONYMS.items():
        if name in model.parameters:
            model.parameters[synonym] = model.parameters.pop(name)
    for name, nothing in _DIODE_OFF.items():
        if name in model.parameters and model.parameters[name] not in nothing:
            raise problem(
                model.line,
                "changes the diode in a way that is not supported",
                object=model.name,
                field=name,
                value=model.parameters[name],
                remedy="Leave it out if the rest of the model is enough.",
            )
    p = model.take(_DIODE, _DIODE_IGNORED | frozenset(_DIODE_OFF))
    if p["level"] != 1:
        raise problem(
            model.line, "only level 1 is supported", object=model.name, field="level", value=p["level"]
        )
    if math.isnan(p["nbv"]):
        p["nbv"] = p["n"]
    # ngspice and SPICE3 cut these off rather than refuse them.
    p["m"], p["fc"] = min(p["m"], 0.9), min(p["fc"], 0.95)
    for name in ("is", "n", "nbv", "vj", "bv", "ibv"):
        _require(model, p, name, p[name] > 0, "must be positive")
    for name in ("rs", "cjo", "tt", "m", "fc"):
        _require(model, p, name, p[name] >= 0, "must not be negative")
    return p


def _require(model: Model, p: Mapping[str, float], name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise problem(model.line, rule, object=model.name, field=name, value=p[name])


def _junction_at(p: Mapping[str, float], t: float, t_nominal: float) -> tuple[float, float]:
    """Return the junction potential [V] and the capacitance at 0 V [F], per area, at ``t`` [K]."""
    if t == t_nominal:
        return p["vj"], p["cjo"]

    def shift(kelvin: float) -> float:
        """-2 Vt (1.5 ln(T/Tref) + q/k-scaled change of the gap of silicon)."""
        gap = 1.16 - 7.02e-4 * kelvin * kelvin / (kelvin + 1108)
        change = -gap / (2 * BOLTZMANN * kelvin) + 1.1150877 / (2 * BOLTZMANN * _REFERENCE)
        voltage = BOLTZMANN * kelvin / CHARGE
        return -2 * voltage * (1.5 * math.log(kelvin / _REFERENCE) + CHARGE * change)

    at_reference = (p["vj"] - shift(t_nominal)) / (t_nominal / _REFERENCE)
    old = (p["vj"] - at_reference) / at_reference
    capacitance = p["cjo"] / (1 + p["m"] * (400e-6 * (t_nominal - _REFERENCE) - old))
    potential = shift(t) + t / _REFERENCE * at_reference
    new = (potential - at_reference) / at_reference
    return potential, capacitance * (1 + p["m"] * (400e-6 * (t - _REFERENCE) - new))


def _breakdown_voltage(
    model: Model, given: float, current: float, saturation: float, vt: float, slope: float, tolerance: float
) -> float:
    """Return the voltage at which ngspice's breakdown branch begins, so that ``given`` draws ``current``."""
    if current < saturation * given / vt:
        return given
    voltage = given - slope * math.log(1 + current / saturation)
    for _ in range(25):
        inside = current / saturation + 1 - voltage / vt
        if inside <= 0:
            break
        voltage = given - slope * math.log(inside)
        reached = saturation * (math.exp(min((given - voltage) / slope, 700.0)) - 1 + voltage / vt)
        if abs(reached - current) <= tolerance * current:
            break
    if voltage <= 0:
        raise problem(
            model.line,
            "leaves no positive breakdown voltage with this ibv",
            object=model.name,
            field="bv",
            value=given,
        )
    return voltage


@dataclass(frozen=True, slots=True)
class _Switch:
    """Defaults of a kind of switch, and the letter of what controls it."""

    known: Mapping[str, float]
    smooth: bool


_ROFF = 1e12
_SWITCHES: Mapping[str, _Switch] = {
    "sw": _Switch({"vt": 0.0, "vh": 0.0, "ron": 1.0, "roff": _ROFF}, False),
    "csw": _Switch({"it": 0.0, "ih": 0.0, "ron": 1.0, "roff": _ROFF}, False),
    "vswitch": _Switch({"von": 1.0, "voff": 0.0, "ron": 1.0, "roff": 1e6}, True),
    "iswitch": _Switch({"ion": 1e-3, "ioff": 0.0, "ron": 1.0, "roff": 1e6}, True),
}


def switch_conductance(model: Model, gmin: float) -> Callable[[str], str]:
    """Return what writes a switch's conductance [S] as an expression of its control's expression.

    Raises:
        NetlistError: a model that is no switch, hysteresis, or resistances that are not positive.
    """
    switch = _SWITCHES.get(model.kind)
    if switch is None:
        raise problem(model.line, "is not a model of a switch", object=model.name, value=model.kind)
    letter = "v" if model.kind in ("sw", "vswitch") else "i"
    for name in {"on", "off"} & set(model.parameters):
        model.parameters[letter + name] = model.parameters.pop(name)
    if model.kind in ("sw", "csw") and {"von", "voff", "ion", "ioff"} & set(model.parameters):
        switch = _SWITCHES["vswitch" if model.kind == "sw" else "iswitch"]
    known = dict(switch.known)
    if not switch.smooth and gmin > 0:
        known["roff"] = 1 / gmin
    p = model.take(known)
    for name in ("ron", "roff"):
        _require(model, p, name, p[name] > 0, "must be positive")
    on, off = 1 / p["ron"], 1 / p["roff"]
    if not switch.smooth:
        threshold, hysteresis = (p[name] for name in list(known)[:2])
        if hysteresis:
            raise problem(
                model.line,
                "a switch with hysteresis is not supported",
                object=model.name,
                field=list(known)[1],
                value=hysteresis,
                remedy="Use 0, or a model with von and voff, whose resistance changes smoothly.",
            )
        return lambda control: f"(({control}) > {threshold!r} ? {on!r} : {off!r})"
    closed, opened = (p[name] for name in list(known)[:2])
    if closed == opened:
        raise problem(model.line, "must differ from the voltage or current that opens it", object=model.name)
    middle, width = (closed + opened) / 2, closed - opened
    mean, change = math.log(math.sqrt(p["ron"] * p["roff"])), math.log(p["ron"] / p["roff"])

    def smooth(control: str) -> str:
        u = f"limit((({control}) - ({middle!r}))/({width!r}), -0.5, 0.5)"
        return f"exp(-(({mean!r}) + ({change!r})*(1.5*{u} - 2*{u}*{u}*{u})))"

    return smooth
