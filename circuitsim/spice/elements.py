"""Element lines: one function per letter, each adding its rows to the circuit.

Sources: the ngspice manual, chapters 2 to 7, and what ngspice 39 was measured to do where it is silent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite

from circuitsim.errors import NetlistError
from circuitsim.netlist.netlist import GROUND
from circuitsim.spice.circuit import LARGEST, Circuit, Instance
from circuitsim.spice.controlled import (
    behavioural_resistor,
    behavioural_source,
    current_controlled,
    current_switch,
    expression_value,
    voltage_controlled,
    voltage_switch,
)
from circuitsim.spice.fields import Fields, enough, only, positive, read_fields, words_of
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.models import DiodeValues, diode_values, scaled_by_temperature
from circuitsim.spice.parameters import Scope
from circuitsim.spice.sources import read_source
from circuitsim.spice.structure import Call, Definition
from circuitsim.units import spice_number

__all__ = ["expand"]

MOST_ELEMENTS = 2_000_000
_DEEPEST = 60
_SMALLEST_RESISTANCE = 1e-3
"""What ngspice makes of a resistor of 0 ohm [ohm]."""
_MOST_COUPLED = 100
_SUPPORTED = "Supported elements: R C L K V I E F G H B D S W X."

_SPECIAL = re.compile(r"[(){}=,'\"]")
_DIGITS = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?")
_Handler = Callable[[Circuit, Instance, Line], None]


def expand(circuit: Circuit, definition: Definition, scope: Scope) -> Instance:
    """Add every element of a deck to the circuit, those of its subcircuits included.

    Raises:
        NetlistError: an element that is not supported or not understood, or too many of them.
    """
    _count(definition, [])
    top = Instance(definition, scope, circuit, local=circuit.nodes)
    _expand(circuit, top)
    return top


def _expand(circuit: Circuit, instance: Instance) -> None:
    local, prefix = instance.local, f".{instance.path}." if instance.path else ""
    # Most lines of a large deck: a name, two nodes and a number.
    simple = circuit.simple if instance.multiplier == 1 else {}
    for line in instance.definition.elements:
        text = line.text
        letter = text[0]
        if letter in simple:
            words = text.split()
            if len(words) == 4 and _DIGITS.fullmatch(words[3]) and not _SPECIAL.search(text):
                add_name, add_line, add_pos, add_neg, add_value, least = simple[letter]
                name, pos, neg, digits = words
                value = float(digits)
                if least < value < LARGEST:
                    add_name(f"{letter}{prefix}{name}" if prefix else name)
                    add_line(line)
                    index = local.get(pos)
                    add_pos(circuit.new_node(instance, pos) if index is None else index)
                    index = local.get(neg)
                    add_neg(circuit.new_node(instance, neg) if index is None else index)
                    add_value(value)
                    continue
        handler = _HANDLERS.get(letter)
        if handler is None:
            raise problem(line, "is not an element that is supported", value=letter, remedy=_SUPPORTED)
        try:
            handler(circuit, instance, line)
        except NetlistError as error:
            if error.file is not None:
                raise
            raise problem(line, error.rule, value=error.value, remedy=error.remedy) from None


# --------------------------------------------------------------------------------- two-terminal elements


def _pair(instance: Instance, words: list[str]) -> tuple[int, int]:
    return instance.node(words[0]), instance.node(words[1])


def _value_and_model(
    instance: Instance, line: Line, fields: Fields, key: str, kind: str
) -> tuple[float | None, dict[str, float], dict[str, float]]:
    """Return an R, C or L line's own value, its numbers by name, and those of its model.

    The value may stand before or behind the model's name, or as ``key=``.
    """
    scope = instance.scope
    named = {
        name: scope.number(line, word, name) for name, word in fields.named.items() if name not in _UNUSED
    }
    value = next((named.pop(name) for name in _VALUE_NAMES[key] if name in named), None)
    model: dict[str, float] = {}
    seen_model = False
    for word in fields.words[2:]:
        if spice_number(word) is None and word[0] not in "{'" and not seen_model and instance.has_model(word):
            card = instance.model(line, word, (kind,))
            card.take(_GEOMETRY[kind], _NOISE)
            model = card.parameters
            seen_model = True
        elif value is None:
            value = scope.number(line, word, key)
        else:
            raise problem(line, "is not understood here", value=word)
    return value, named, model


_R_PARAMETERS = ("r", "l", "w", "m", "scale", "temp", "dtemp", "tc1", "tc2", "tce", "ac", "noisy")
_C_PARAMETERS = ("c", "ic", "l", "w", "m", "scale", "temp", "dtemp", "tc1", "tc2")
_L_PARAMETERS = ("l", "ic", "m", "scale", "temp", "dtemp", "tc1", "tc2")
_UNUSED = frozenset(("ac", "noisy", "noise"))
_VALUE_NAMES = {"r": ("r", "resistance"), "c": ("c", "cap", "capacitance"), "l": ("l", "ind", "inductance")}
_TEMPERATURE = ("tc1", "tc2", "tce", "tnom")
_SIZES = ("l", "w", "defw", "defl", "narrow", "short")
_GEOMETRY = {
    "r": dict.fromkeys(("rsh", "res", *_VALUE_NAMES["r"], *_SIZES, *_TEMPERATURE), 0.0),
    "c": dict.fromkeys(("cj", "cjsw", *_VALUE_NAMES["c"], *_SIZES, *_TEMPERATURE), 0.0),
    "l": dict.fromkeys((*_VALUE_NAMES["l"], *_TEMPERATURE), 0.0),
}
_NOISE = frozenset(("kf", "af", "ef", "lf", "wf"))
_LENGTH, _WIDTH = 10e-6, 10e-6
"""Length and width that ngspice gives a resistor whose model has a sheet resistance [m]."""


def _model_value(model: dict[str, float], *names: str) -> float | None:
    return next((model[name] for name in names if name in model), None)


def _rise(circuit: Circuit, named: dict[str, float], model: dict[str, float]) -> float:
    """Return the element's temperature over the nominal one [K]."""
    temperature = named.pop("temp", circuit.temperatures.circuit + named.pop("dtemp", 0.0))
    named.pop("dtemp", None)
    return temperature - model.get("tnom", circuit.temperatures.nominal)


def _coefficients(named: dict[str, float], model: dict[str, float]) -> dict[str, float]:
    return {name: named.pop(name, model.get(name, 0.0)) for name in ("tc1", "tc2", "tce")}


def _take_pair(line: Line, fields: Fields) -> None:
    """Turn ``tc=a,b`` into ``tc1=a tc2=b``."""
    words = words_of(line)
    if "tc" in fields.named:
        fields.named["tc1"] = fields.named.pop("tc")
        at = words.index("tc")
        second = words[at + 3 : at + 4]
        if second and second[0] in fields.words[2:] and words[at + 4 : at + 5] != ["="]:
            last = len(fields.words) - 1 - fields.words[::-1].index(second[0])
            fields.named["tc2"] = fields.words.pop(last)


def _resistor(circuit: Circuit, instance: Instance, line: Line) -> None:
    text = expression_value(line, "r")
    if text is not None:
        behavioural_resistor(circuit, instance, line, text)
        return
    fields = enough(line, 2, "Rname node node value")
    pos, neg = _pair(instance, fields.words)
    name = instance.name_of(line)
    _take_pair(line, fields)
    value, named, model = _value_and_model(instance, line, fields, "r", "r")
    rise = _rise(circuit, named, model)
    length, width = named.pop("l", 0.0), named.pop("w", 0.0)
    if value is None and model.get("rsh"):
        long = (length or model.get("l", model.get("defl", _LENGTH))) - 2 * model.get("short", 0.0)
        wide = (width or model.get("w", model.get("defw", _WIDTH))) - 2 * model.get("narrow", 0.0)
        value = model["rsh"] * positive(line, long, "l") / positive(line, wide, "w")
    if value is None:
        value = _model_value(model, "res", *_VALUE_NAMES["r"])
    if value is None:
        raise problem(line, "has no resistance", value=line.text[:60], remedy="Write Rname node node value.")
    value *= named.pop("scale", 1.0)
    value *= scaled_by_temperature(_coefficients(named, model), rise)
    multiplier = positive(line, named.pop("m", 1.0), "m") * instance.multiplier
    only(line, named, _R_PARAMETERS)
    if not isfinite(value):
        raise problem(line, "must be finite", field="r", value=value)
    if value == 0:
        value = _SMALLEST_RESISTANCE
        circuit.notes.append(f"{line.place}: {name}: a resistance of 0 was taken for 1 mohm, as ngspice does")
    value /= multiplier
    if 1 / abs(value) == float("inf"):
        raise problem(line, "is too small", field="r", value=value)
    if value > 0:
        circuit.add("resistor", line, name, pos=pos, neg=neg, conductance=value)
    else:
        circuit.add(
            "vccs", line, name, pos=pos, neg=neg, control_pos=pos, control_neg=neg, transconductance=1 / value
        )


def _capacitor(circuit: Circuit, instance: Instance, line: Line) -> None:
    if expression_value(line, "c") is not None:
        raise problem(line, "a capacitance that depends on voltages is not supported", value=line.text[:60])
    fields = enough(line, 2, "Cname node node value")
    pos, neg = _pair(instance, fields.words)
    name = instance.name_of(line)
    _take_pair(line, fields)
    value, named, model = _value_and_model(instance, line, fields, "c", "c")
    rise = _rise(circuit, named, model)
    initial = named.pop("ic", None)
    length, width = named.pop("l", model.get("defl", 0.0)), named.pop("w", model.get("defw", _WIDTH))
    if value is None and (model.get("cj") or model.get("cjsw")) and length:
        long, wide = length - model.get("short", 0.0), width - model.get("narrow", 0.0)
        value = model.get("cj", 0.0) * long * wide + model.get("cjsw", 0.0) * 2 * (long + wide)
    if value is None:
        value = _model_value(model, *_VALUE_NAMES["c"])
    if value is None:
        raise problem(line, "has no capacitance", value=line.text[:60], remedy="Write Cname node node value.")
    value *= named.pop("scale", 1.0) * scaled_by_temperature(_coefficients(named, model), rise)
    value *= positive(line, named.pop("m", 1.0), "m") * instance.multiplier
    only(line, named, _C_PARAMETERS)
    if value == 0:
        circuit.notes.append(f"{line.place}: {name}: a capacitance of 0 was left out")
        return
    circuit.add("capacitor", line, name, pos=pos, neg=neg, capacitance=positive(line, value, "c"))
    if initial is not None:
        circuit.element_initial[name] = initial


def _inductor(circuit: Circuit, instance: Instance, line: Line) -> None:
    if expression_value(line, "l") is not None:
        raise problem(line, "an inductance that depends on currents is not supported", value=line.text[:60])
    fields = enough(line, 2, "Lname node node value")
    pos, neg = _pair(instance, fields.words)
    name = instance.name_of(line)
    _take_pair(line, fields)
    value, named, model = _value_and_model(instance, line, fields, "l", "l")
    rise = _rise(circuit, named, model)
    initial = named.pop("ic", None)
    if value is None:
        value = _model_value(model, *_VALUE_NAMES["l"])
    if value is None:
        raise problem(line, "has no inductance", value=line.text[:60], remedy="Write Lname node node value.")
    value *= named.pop("scale", 1.0) * scaled_by_temperature(_coefficients(named, model), rise)
    value /= positive(line, named.pop("m", 1.0), "m") * instance.multiplier
    only(line, named, _L_PARAMETERS)
    circuit.add("inductor", line, name, pos=pos, neg=neg, inductance=positive(line, value, "l"))
    if initial is not None:
        circuit.element_initial[name] = initial


def _coupling(circuit: Circuit, instance: Instance, line: Line) -> None:
    fields = enough(line, 3, "Kname Lfirst Lsecond coefficient")
    only(line, fields.named, ())
    *names, word = fields.words
    name = instance.name_of(line)
    coefficient = instance.scope.number(line, word, "coefficient")
    if not -1 <= coefficient <= 1:
        raise problem(line, "must lie between -1 and 1", field="coefficient", value=coefficient)
    if len(names) > _MOST_COUPLED:
        raise problem(line, f"couples more than {_MOST_COUPLED} inductors", value=len(names))
    if len(set(names)) < len(names):
        raise problem(line, "couples an inductor to itself", value=names[0])

    def resolve() -> None:
        try:
            rows = [circuit.inductor_row(instance, inductor) for inductor in names]
        except NetlistError as error:
            raise problem(line, error.rule, value=error.value) from None
        for k, first in enumerate(rows):
            for m in range(k + 1, len(rows)):
                label = name if len(rows) == 2 else f"{name}.{k}.{m}"
                circuit.add("coupling", line, label, first=first, second=rows[m], coefficient=coefficient)

    circuit.later(resolve)


def _diode(circuit: Circuit, instance: Instance, line: Line) -> None:
    text = line.text
    words = text.split() if not _SPECIAL.search(text) else []
    if len(words) == 4 and words[3] in instance.diodes:
        _place_diode(circuit, instance, line, words[1], words[2], instance.diodes[words[3]])
        return
    fields = enough(line, 3, "Dname anode cathode model")
    scope = instance.scope
    model = instance.model(line, fields.words[2], ("d",))
    named = {name: scope.number(line, word, name) for name, word in fields.named.items() if name != "ic"}
    rest = [word for word in fields.words[3:] if word not in ("off", "on")]
    if rest:
        named.setdefault("area", scope.number(line, rest.pop(0), "area"))
    if rest:
        raise problem(line, "is not understood here", value=rest[0])
    temperature = named.pop("temp", circuit.temperatures.circuit + named.pop("dtemp", 0.0))
    named.pop("dtemp", None)
    plain = not named and temperature == circuit.temperatures.circuit and instance.multiplier == 1
    area = named.pop("area", None)
    multiplier = positive(line, named.pop("m", 1.0), "m") * instance.multiplier
    if named.pop("pj", 0.0):
        raise problem(line, "the side wall of a diode is not supported", value="pj")
    for unused in ("w", "l", "lm", "lp", "wm", "wp"):
        named.pop(unused, None)
    only(line, named, ("area", "m", "temp", "dtemp", "ic", "pj"))
    values = diode_values(
        model,
        temperature=temperature,
        nominal=circuit.temperatures.nominal,
        tolerance=circuit.tolerance,
        area=area,
        multiplier=multiplier,
    )
    if plain:
        instance.diodes[fields.words[2]] = values
    _place_diode(circuit, instance, line, fields.words[0], fields.words[1], values)


def _place_diode(
    circuit: Circuit, instance: Instance, line: Line, pos: str, neg: str, values: DiodeValues
) -> None:
    name = instance.name_of(line)
    anode, cathode = instance.node(pos), instance.node(neg)
    if values.series_resistance > 0:
        inner = circuit.internal_node(f"{name}#internal")
        row = circuit.add(
            "resistor", line, f"r.{name}#rs", pos=anode, neg=inner, conductance=values.series_resistance
        )
        circuit.stands_behind(name, "resistor", row)
        anode = inner
    circuit.add("diode", line, name, pos=anode, neg=cathode)
    circuit.diode_values.append(values)


# ------------------------------------------------------------------------------------ independent sources


def _voltage_source(circuit: Circuit, instance: Instance, line: Line) -> None:
    words = words_of(line)
    if len(words) < 3:
        raise problem(line, "is incomplete", value=line.text, remedy="Write Vname node node value.")
    name = instance.name_of(line)
    pos, neg = _pair(instance, words[1:])
    source = read_source(line, words[3:], instance.scope, current=False)
    circuit.add("vsource", line, name, pos=pos, neg=neg, voltage=source.value)
    if source.waveform is not None:
        circuit.waveforms[name] = source.waveform


def _current_source(circuit: Circuit, instance: Instance, line: Line) -> None:
    words = words_of(line)
    if len(words) < 3:
        raise problem(line, "is incomplete", value=line.text, remedy="Write Iname node node value.")
    name = instance.name_of(line)
    pos, neg = _pair(instance, words[1:])
    source = read_source(line, words[3:], instance.scope, current=True)
    multiplier = source.multiplier * instance.multiplier
    if source.waveform is not None:
        if multiplier != 1:
            raise problem(line, "a waveform with a multiplier is not supported", field="m", value=multiplier)
        circuit.waveforms[name] = source.waveform
    circuit.add("isource", line, name, pos=pos, neg=neg, current=source.value * multiplier)


# --------------------------------------------------------------------------------------------- subcircuits


def _subcircuit(circuit: Circuit, instance: Instance, line: Line) -> None:
    call = instance.definition.calls[line]
    definition, own = call.definition, call.definition.names
    multiplier = instance.multiplier
    given: dict[str, float] = {}
    for name, word in call.given.items():
        value = instance.scope.number(line, word, name)
        if name in own.defaults or name in own.parameters:
            given[name] = value
        elif name == "m":
            multiplier *= positive(line, value, "m")
        else:
            known = sorted({*own.defaults, *own.parameters})
            remedy = f"Its parameters: {' '.join(known)}." if known else "It has none."
            raise problem(line, f"is no parameter of {definition.name}", value=name, remedy=remedy)
    name = line.text.split(None, 1)[0].partition("(")[0]
    local = {pin: instance.node(word) for pin, word in zip(definition.pins, call.pins, strict=True)}
    for ground in circuit.grounds:
        local[ground] = GROUND
    inner = Instance(
        definition,
        Scope(own, caller=instance.scope, given=given),
        circuit,
        path=f"{instance.path}.{name}" if instance.path else name,
        caller=instance,
        local=local,
        multiplier=multiplier,
    )
    _expand(circuit, inner)


def _called(caller: Definition, line: Line) -> Call:
    """Return what an X line uses.

    Raises:
        NetlistError: it is not defined, or has another number of pins.
    """
    fields = read_fields(line, [word for word in words_of(line)[1:] if word != "params:"])
    if not fields.words:
        raise problem(line, "is incomplete", value=line.text, remedy="Write Xname nodes subcircuit.")
    *pins, name = fields.words
    definition = caller.subcircuit(name)
    if definition is None:
        known = sorted({name for d in caller.outward() for name in d.subcircuits})
        remedy = f"Subcircuits here: {', '.join(known[:8])}." if known else "Add its .subckt, or .include it."
        raise problem(line, "names a subcircuit that is not defined", value=name, remedy=remedy)
    if len(pins) != len(definition.pins):
        raise problem(
            line,
            f"{name} has {len(definition.pins)} pins, not {len(pins)}",
            value=" ".join(pins),
            remedy=f"Its pins: {' '.join(definition.pins)}.",
        )
    return Call(definition, pins, fields.named)


def _count(definition: Definition, inside: list[Definition]) -> int:
    """Return how many elements and instances a definition comes to when written out.

    Counting first means that a few lines which multiply each other cannot fill the memory.
    """
    if definition.size is None:
        total = len(definition.elements)
        inside.append(definition)
        for line in definition.elements:
            if line.text[0] != "x":
                continue
            call = definition.calls[line] = _called(definition, line)
            if call.definition in inside or len(inside) > _DEEPEST:
                rule = "contains itself" if call.definition in inside else f"is nested deeper than {_DEEPEST}"
                raise problem(line, f"the subcircuit {rule}", value=call.definition.name)
            total += _count(call.definition, inside)
            if total > MOST_ELEMENTS:
                rule = f"the circuit has more than {MOST_ELEMENTS} elements"
                raise problem(line, rule, value=call.definition.name)
        inside.pop()
        definition.size = total
    return definition.size


_HANDLERS: dict[str, _Handler] = {
    "r": _resistor,
    "c": _capacitor,
    "l": _inductor,
    "k": _coupling,
    "d": _diode,
    "v": _voltage_source,
    "i": _current_source,
    "e": voltage_controlled,
    "g": voltage_controlled,
    "f": current_controlled,
    "h": current_controlled,
    "b": behavioural_source,
    "s": voltage_switch,
    "w": current_switch,
    "x": _subcircuit,
}
