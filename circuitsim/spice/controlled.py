"""Controlled, behavioural and switching elements: E F G H B S W, and resistors that depend on voltages.

Linear sources go to the tables of their own; POLY, VALUE, TABLE and switches become expressions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations_with_replacement

from circuitsim.errors import NetlistError
from circuitsim.spice.circuit import Circuit, Instance
from circuitsim.spice.fields import enough, only, positive, read_fields, unquoted, words_of
from circuitsim.spice.lines import Line, problem
from circuitsim.spice.models import Model, scaled_by_temperature, switch_conductance

__all__ = [
    "behavioural_resistor",
    "behavioural_source",
    "current_controlled",
    "current_switch",
    "expression_value",
    "voltage_controlled",
    "voltage_switch",
]

_HEAD = re.compile(r"([^\s(]+)[\s(]+([^\s(),={}]+)[\s,]+([^\s(),={}]+)[\s),]*(.*)", re.DOTALL)
_BEHAVIOURAL = re.compile(r"([vi])\s*=(?!=)\s*(.*)", re.DOTALL)
_POLYNOMIAL = re.compile(r"poly\s*\(?\s*([0-9]{1,6})\s*\)?(?![0-9])\s*(.*)", re.DOTALL)
_VALUE = re.compile(r"(?:(?:value|vol|cur)\s*=(?!=)|value\s*(?=[{'\"]))\s*(.*)", re.DOTALL)
_TABLE = re.compile(r"table(?![a-z0-9_])\s*=?\s*(.*)", re.DOTALL)
_TRAILING = re.compile(
    r"(?:[\s,]|(?<=[})'\"]))(m|tc|tc1|tc2|temp|dtemp|smoothbsrc|reciproctc|reciprocm)\s*=(?!=)"
    r"\s*(\{[^{}]*\}|'[^']*'|[^\s{}()']+)\s*$"
)
_DEPENDS = re.compile(r"(?<![a-z0-9_.$#@])(?:[vi]\s*\(|time(?![a-z0-9_.$#@(]))")
_OTHER_KINDS = ("laplace", "freq", "chebyshev", "delay", "vcr", "vccap", "pwl", "npwl", "ppwl", "and", "nand")
_LARGEST_DIMENSION = 20
_MOST_COEFFICIENTS = 5_000
_LINEAR = {
    "e": ("vcvs", "gain"),
    "g": ("vccs", "transconductance"),
    "f": ("cccs", "gain"),
    "h": ("ccvs", "transresistance"),
}
_BEHAVIOURAL_KIND = {
    "e": "behavioural_voltage",
    "g": "behavioural_current",
    "f": "behavioural_current",
    "h": "behavioural_voltage",
    "v": "behavioural_voltage",
    "i": "behavioural_current",
}

Ends = tuple[int, int]


def voltage_controlled(circuit: Circuit, instance: Instance, line: Line) -> None:
    """E and G: linear, POLY, VALUE (also vol=, cur=) and TABLE."""
    letter = line.text[0]
    _, column = _LINEAR[letter]
    form = f"{letter.upper()}name node node control control {column}"
    ends, rest = _head(instance, line, form)
    if match := _TABLE.fullmatch(rest):
        text = _table(instance, line, match[1])
        _behavioural(circuit, instance, line, letter, ends, text, _multiplier(instance, letter))
        return
    if _polynomial_or_value(circuit, instance, line, ends, rest):
        return
    words = words_of(line, rest)
    if words and words[0] in ("vcvs", "vccs"):
        words = words[1:]
    if words and words[0] in _OTHER_KINDS:
        remedy = "Supported: linear, POLY, VALUE, TABLE."
        raise problem(line, "is a kind of source that is not supported", value=words[0], remedy=remedy)
    fields = read_fields(line, words)
    if len(fields.words) != 3:
        raise problem(line, "is not understood", value=rest[:80], remedy=f"Write {form}.")
    only(line, fields.named, ("m",) if letter == "g" else ())
    gain = instance.scope.number(line, fields.words[2], column)
    gain *= _own_multiplier(instance, line, fields.named) * _multiplier(instance, letter)
    controls = (instance.node(fields.words[0]), instance.node(fields.words[1]))
    _add_linear(circuit, instance, line, ends, controls, gain)


def current_controlled(circuit: Circuit, instance: Instance, line: Line) -> None:
    """F and H: linear, POLY and VALUE."""
    letter = line.text[0]
    _, column = _LINEAR[letter]
    form = f"{letter.upper()}name node node Vsource {column}"
    ends, rest = _head(instance, line, form)
    if _polynomial_or_value(circuit, instance, line, ends, rest):
        return
    words = words_of(line, rest)
    if words and words[0] in ("cccs", "ccvs"):
        words = words[1:]
    fields = read_fields(line, words)
    if len(fields.words) != 2:
        raise problem(line, "is not understood", value=rest[:80], remedy=f"Write {form}.")
    only(line, fields.named, ("m",) if letter == "f" else ())
    gain = instance.scope.number(line, fields.words[1], column)
    gain *= _own_multiplier(instance, line, fields.named) * _multiplier(instance, letter)
    _add_linear(circuit, instance, line, ends, fields.words[0], gain)


def behavioural_source(circuit: Circuit, instance: Instance, line: Line) -> None:
    """B: ``V=expression`` or ``I=expression``."""
    form = "Write Bname node node V={expression} or I={expression}."
    ends, rest = _head(instance, line, form)
    match = _BEHAVIOURAL.fullmatch(rest)
    if match is None:
        raise problem(line, "wants V= or I=", value=rest[:40], remedy=form)
    text, factor = _expression_and_factor(circuit, instance, line, match[2])
    text = _written_out(instance, line, text)
    if match[1] == "i":
        _refuse_multiplied(instance, line)
    _behavioural(circuit, instance, line, match[1], ends, text, factor)


def _written_out(instance: Instance, line: Line, text: str) -> str:
    """Return Xyce's ``{poly(1) v(a) p0 p1 ...}`` as a sum of products, and any other text as it is.

    Of several quantities only linear terms are read: programs count the others differently.
    """
    inner = text[1:-1].strip() if text.startswith("{") and text.endswith("}") else text
    match = _POLYNOMIAL.fullmatch(inner)
    if match is None:
        return text
    dimension = int(match[1])
    probes = re.findall(r"[vi] ?\([^()]*\)", match[2])
    numbers = words_of(line, re.sub(r"[vi] ?\([^()]*\)", " ", match[2]))
    coefficients = [instance.scope.number(line, word, "coefficient") for word in numbers]
    if len(probes) != dimension or not coefficients:
        raise problem(line, f"poly({dimension}) wants so many voltages or currents", value=inner[:60])
    if dimension > 1 and any(coefficients[dimension + 1 :]):
        remedy = "Write the products out."
        raise problem(
            line, "programs count the terms of this poly differently", value=inner[:60], remedy=remedy
        )
    return _sum_of_products(coefficients[:_MOST_COEFFICIENTS], probes)


def behavioural_resistor(circuit: Circuit, instance: Instance, line: Line, text: str) -> None:
    """R with an expression of voltages: the current ``v / expression``."""
    ends, _ = _head(instance, line, "Rname node node value")
    _refuse_multiplied(instance, line)
    nodes = {"pos#": ends[0], "neg#": ends[1]}
    resistance, factor = _expression_and_factor(circuit, instance, line, text, refused=("temp", "dtemp", "m"))
    current = f"v(pos#,neg#)/({_times(resistance, factor)})"
    circuit.behavioural("behavioural_current", instance, line, current, ends=ends, nodes=nodes)


def expression_value(line: Line, key: str) -> str | None:
    """Return the text of an R, C or L line's value if that depends on voltages, currents or time."""
    if "v(" not in line.text and "i(" not in line.text and not _DEPENDS.search(line.text):
        return None
    match = _HEAD.fullmatch(line.text)
    text = re.sub(rf"^{key}\s*=\s*", "", match[4]).strip() if match else ""
    return text if _DEPENDS.search(text) else None


def voltage_switch(circuit: Circuit, instance: Instance, line: Line) -> None:
    """S: a conductance that a voltage switches, or any expression given as ``control=``."""
    fields = enough(line, 3, "Sname node node control control model")
    only(line, fields.named, ("m", "control"))
    words = [word for word in fields.words if word not in ("on", "off")]
    control = fields.named.get("control")
    if len(words) != (5 if control is None else 3):
        raise problem(line, "wants four nodes and a model", value=" ".join(fields.words))
    nodes = dict(zip(("pos#", "neg#", "cpos#", "cneg#"), map(instance.node, words[:-1]), strict=False))
    model = instance.model(line, words[-1], ("sw", "vswitch"))
    factor = _own_multiplier(instance, line, fields.named)
    _switch(circuit, instance, line, model, factor, unquoted(control or "v(cpos#,cneg#)"), nodes, {})


def current_switch(circuit: Circuit, instance: Instance, line: Line) -> None:
    """W: a conductance that a current switches."""
    fields = enough(line, 4, "Wname node node Vsource model")
    only(line, fields.named, ("m",))
    words = [word for word in fields.words if word not in ("on", "off")]
    if len(words) != 4:
        raise problem(line, "wants two nodes, a source and a model", value=" ".join(fields.words))
    nodes = {"pos#": instance.node(words[0]), "neg#": instance.node(words[1])}
    model = instance.model(line, words[3], ("csw", "iswitch"))
    factor = _own_multiplier(instance, line, fields.named)
    _switch(circuit, instance, line, model, factor, "i(control#)", nodes, {"control#": words[2]})


def _switch(
    circuit: Circuit,
    instance: Instance,
    line: Line,
    model: Model,
    factor: float,
    control: str,
    nodes: Mapping[str, int],
    sources: Mapping[str, str],
) -> None:
    _refuse_multiplied(instance, line)
    conductance = switch_conductance(model, circuit.gmin)(control)
    text = _times(f"v(pos#,neg#)*{conductance}", factor)
    ends = (nodes["pos#"], nodes["neg#"])
    circuit.behavioural("behavioural_current", instance, line, text, ends=ends, nodes=nodes, sources=sources)


# ------------------------------------------------------------------------------------------------- pieces


def _head(instance: Instance, line: Line, form: str) -> tuple[Ends, str]:
    """Return the nodes that an element lies between, and the text after them."""
    match = _HEAD.fullmatch(line.text)
    if match is None or not match[4]:
        form = form if form.startswith("Write") else f"Write {form}."
        raise problem(line, "is incomplete", value=line.text[:80], remedy=form)
    return (instance.node(match[2]), instance.node(match[3])), match[4].strip()


def _multiplier(instance: Instance, letter: str) -> float:
    """Return how many parallel copies the subcircuit has, for currents; voltages stay as they are."""
    return instance.multiplier if letter in "fg" else 1.0


def _own_multiplier(instance: Instance, line: Line, named: Mapping[str, str]) -> float:
    return positive(line, instance.scope.number(line, named["m"], "m"), "m") if "m" in named else 1.0


def _refuse_multiplied(instance: Instance, line: Line) -> None:
    if instance.multiplier != 1:
        raise problem(
            line,
            "stands in a subcircuit with a multiplier, which ngspice applies to no B, S and W elements",
            value=instance.multiplier,
            remedy="Use several instances, or scale the expression by a parameter.",
        )


def _behavioural(
    circuit: Circuit,
    instance: Instance,
    line: Line,
    letter: str,
    ends: Ends,
    text: str,
    factor: float = 1.0,
) -> None:
    circuit.behavioural(_BEHAVIOURAL_KIND[letter], instance, line, _times(text, factor), ends=ends)


def _times(text: str, factor: float) -> str:
    return text if factor == 1 else f"({text})*({factor!r})"


def _add_linear(
    circuit: Circuit, instance: Instance, line: Line, ends: Ends, control: tuple[int, int] | str, gain: float
) -> None:
    """Add a linear source, controlled by two nodes or by an element's current."""
    kind, column = _LINEAR[line.text[0]]
    name = instance.name_of(line)
    own = {"pos": ends[0], "neg": ends[1], column: gain}
    if not isinstance(control, str):
        circuit.add(kind, line, name, **own, control_pos=control[0], control_neg=control[1])
        return
    row = circuit.add(kind, line, name, **own, control=-1)

    def resolve() -> None:
        try:
            source = circuit.source_row(instance, control)
        except NetlistError as error:
            remedy = "A current is sensed through an element of this deck, as a rule a source of 0 V."
            raise problem(line, error.rule, value=control, remedy=remedy) from None
        circuit.rows[kind].columns["control"][row] = source

    circuit.later(resolve)


def _polynomial_or_value(circuit: Circuit, instance: Instance, line: Line, ends: Ends, rest: str) -> bool:
    """Add a POLY or VALUE source; return False if the text is neither."""
    letter = line.text[0]
    if match := _POLYNOMIAL.fullmatch(rest):
        _polynomial(circuit, instance, line, ends, int(match[1]), words_of(line, match[2]))
        return True
    if match := _VALUE.fullmatch(rest):
        text, factor = _expression_and_factor(circuit, instance, line, match[1])
        factor *= _multiplier(instance, letter)
        _behavioural(circuit, instance, line, letter, ends, text, factor)
        return True
    return False


def _polynomial(
    circuit: Circuit, instance: Instance, line: Line, ends: Ends, dimension: int, words: list[str]
) -> None:
    """Add a POLY source: ``p0 + p1 x1 + ... + pn xn + p(n+1) x1^2 + p(n+2) x1 x2 + ...``."""
    letter = line.text[0]
    by_voltage = letter in "eg"
    if not 1 <= dimension <= _LARGEST_DIMENSION:
        raise problem(line, f"must lie between 1 and {_LARGEST_DIMENSION}", field="poly", value=dimension)
    fields = read_fields(line, words)
    only(line, fields.named, ("m",) if letter in "fg" else ())
    n_controls = dimension * (2 if by_voltage else 1)
    controls, numbers = fields.words[:n_controls], fields.words[n_controls:]
    if not numbers:
        needs = (
            f"poly({dimension}) wants {n_controls} {'nodes' if by_voltage else 'sources'} and coefficients"
        )
        raise problem(line, needs, value=" ".join(words)[:80])
    if len(numbers) > _MOST_COEFFICIENTS:
        raise problem(line, f"has more than {_MOST_COEFFICIENTS} coefficients", value=len(numbers))
    factor = _own_multiplier(instance, line, fields.named) * _multiplier(instance, letter)
    coefficients = [factor * instance.scope.number(line, word, "coefficient") for word in numbers]
    if len(coefficients) == dimension == 1:
        coefficients = [0.0, *coefficients]
        circuit.notes.append(
            f"{line.place}: {instance.name_of(line)}: the one coefficient of poly(1) was taken for the "
            "linear one, as in SPICE2; ngspice takes it for the constant"
        )
    used = [k for k, coefficient in enumerate(coefficients) if coefficient]
    if len(used) == 1 and 1 <= used[0] <= dimension:
        which = used[0] - 1
        pair = [instance.node(word) for word in controls] if by_voltage else []
        control = (pair[2 * which], pair[2 * which + 1]) if by_voltage else controls[which]
        _add_linear(circuit, instance, line, ends, control, coefficients[used[0]])
        return
    inputs = [f"v(p{k}#,n{k}#)" if by_voltage else f"i(s{k}#)" for k in range(dimension)]
    nodes: dict[str, int] = {}
    sources: dict[str, str] = {}
    if by_voltage:
        marks = [f"{end}{k}#" for k in range(dimension) for end in "pn"]
        nodes = {mark: instance.node(word) for mark, word in zip(marks, controls, strict=True)}
    else:
        sources = {f"s{k}#": word for k, word in enumerate(controls)}
    text = _sum_of_products(coefficients, inputs)
    circuit.behavioural(
        _BEHAVIOURAL_KIND[letter], instance, line, text, ends=ends, nodes=nodes, sources=sources
    )


def _sum_of_products(coefficients: list[float], inputs: list[str]) -> str:
    terms: list[str] = []
    done, degree = 0, 0
    while done < len(coefficients):
        for factors in combinations_with_replacement(inputs, degree):
            if done == len(coefficients):
                break
            if coefficients[done]:
                terms.append("*".join([f"({coefficients[done]!r})", *factors]))
            done += 1
        degree += 1
    return " + ".join(terms) or "0"


def _expression_and_factor(
    circuit: Circuit, instance: Instance, line: Line, text: str, refused: tuple[str, ...] = ()
) -> tuple[str, float]:
    """Split an expression from parameters that follow it; return it and the factor that they make.

    Some elements of ngspice ignore some parameters: those are ``refused``.
    """
    text = text.strip()
    named: dict[str, float] = {}
    while match := _TRAILING.search(text):
        if match[1] in named:
            raise problem(line, "is given twice", field=match[1])
        named[match[1]] = instance.scope.number(line, match[2], match[1])
        text = text[: match.start()].rstrip()
    if not text:
        raise problem(line, "has no expression")
    for name in ("smoothbsrc", "reciproctc", "reciprocm", *refused):
        if named.get(name):
            raise problem(line, "is not supported here", value=name)
    temperature = named.get("temp", circuit.temperatures.circuit + named.get("dtemp", 0.0))
    named["tc1"] = named.get("tc1", named.get("tc", 0.0))
    factor = scaled_by_temperature(named, temperature - circuit.temperatures.nominal)
    return unquoted(text), factor * named.get("m", 1.0)


def _table(instance: Instance, line: Line, rest: str) -> str:
    """Return the expression of ``{x} = (x1, y1) (x2, y2) ...``: linear between points, flat outside."""
    form = "Write TABLE {expression} = (x1, y1) (x2, y2) ..."
    closing = {"{": "}", "'": "'", '"': '"', "(": ")"}.get(rest[:1])
    if closing is None:
        raise problem(line, "wants an expression in braces after TABLE", value=rest[:40], remedy=form)
    end = _closed(rest, closing)
    if end < 0:
        raise problem(line, "has an expression that is not closed", value=rest[:40], remedy=form)
    words = words_of(line, rest[end + 1 :].strip().removeprefix("="))
    if len(words) < 2 or len(words) % 2 or "=" in words:
        raise problem(line, "wants pairs of numbers", field="table", value=" ".join(words)[:60], remedy=form)
    numbers = [repr(instance.scope.number(line, word, "table")) for word in words]
    if len(numbers) == 2:
        return numbers[1]
    return f"table({rest[1:end]}, {', '.join(numbers)})"


def _closed(text: str, closing: str) -> int:
    """Return where what the first letter of a text opens is closed, or -1."""
    if text[0] == closing:
        return text.find(closing, 1)
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == text[0]) - (letter == closing)
        if depth == 0:
            return at
    return -1
