"""The corrected and the dyadic phase as circuits of ordinary elements, derived from any circuit.

Both follow from transposing what each controlled source adds to the small-signal matrix J: its
control and output ports swap (Director and Rohrer 1969). Two-terminal elements stay as they are.

Corrected phase, ``F(x) + (J0^T - J0)(x - x0) + beta dC/dx = 0`` (arXiv:2602.03670): each controlled
source is held at its anchor value, and the swapped one acts on the changes from the anchor.

    element, gain   held                    swapped, on changes from the anchor
    VCCS g          current g*v_p0 at q     VCCS g: v_q -> current at p
    VCVS mu         voltage mu*v_p0 at q    CCCS -mu: i_q -> current at p
    CCCS B          current B*i_c0 at q     VCVS -B in series with the sensed branch c: v_q -> v_c
    CCVS r          voltage r*i_c0 at q     CCVS r in series with the sensed branch c: i_q -> v_c
    buffer f        f(v_p) - a*(v_p-v_p0)   CCCS -a: i_q -> current at p, with a = f'(v_p0)
    behavioural f   f(x) - sum a*(x-x0)     per input x, with its slope a: as the VCCS, CCCS (f a current),
                                            VCVS or CCVS (f a voltage) of gain a

Dyadic phase, ``F(m) = 0`` and ``J(m)^T d + beta dC/dm = 0``: the circuit itself beside a linear
transposed one, whose gains and drive are those of the first at its operating point.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from circuitsim.errors import NetlistError
from circuitsim.netlist.builder import NetlistBuilder
from circuitsim.netlist.expressions import Current, Drop, Expression
from circuitsim.netlist.models import (
    DIODE_CURRENT,
    buffer_gain,
    buffer_voltage,
    diode_conductance,
    ideal_diode_conductance,
    softmax_conductance,
)
from circuitsim.netlist.netlist import Netlist, OutputPort
from circuitsim.netlist.nudge import Nudge
from circuitsim.netlist.tables import FloatArray, IntArray

__all__ = ["corrected_netlist", "dyadic_netlist"]


def corrected_netlist(netlist: Netlist, voltage: FloatArray, current: FloatArray) -> Netlist:
    """Return the circuit of the corrected phase around one anchor; nudge it with `nudged_netlist`.

    Args:
        netlist: a flat netlist.
        voltage: anchor node voltages (N,) V.
        current: anchor branch currents (M,) A, in the order of ``netlist.branch_names``.
    """
    _require_flat(netlist)
    builder = NetlistBuilder.extending(
        replace(
            netlist,
            vccs=type(netlist.vccs).empty(),
            vcvs=type(netlist.vcvs).empty(),
            cccs=type(netlist.cccs).empty(),
            ccvs=type(netlist.ccvs).empty(),
            buffer=type(netlist.buffer).empty(),
            behavioural_current=type(netlist.behavioural_current).empty(),
            behavioural_voltage=type(netlist.behavioural_voltage).empty(),
            vsource=type(netlist.vsource).empty(),
        )
    )
    writer = _Writer(builder)
    branch = netlist.branch_starts
    v0, i0 = np.asarray(voltage), np.asarray(current)
    name = netlist.node_names

    def drop(table: object, row: int, pos: str = "pos", neg: str = "neg") -> float:
        return float(v0[getattr(table, pos)[row]] - v0[getattr(table, neg)[row]])

    # Voltage sources first, in their old rows, so that input ports stay valid. What the swapped
    # CCCS and CCVS add in series comes between a sensed source and its old negative node.
    tail: list[str] = []
    sensed = _sensed(netlist)
    for row, label in enumerate(netlist.vsource.name):
        end = name[netlist.vsource.neg[row]]
        if row in sensed:
            end = writer.internal(f"{label}.tail")
        tail.append(end)
        builder.add(
            "vsource", label, name[netlist.vsource.pos[row]], end, voltage=netlist.vsource.voltage[row]
        )

    t = netlist.vccs
    for row, label in enumerate(t.name):
        g = float(t.transconductance[row])
        q = (name[t.pos[row]], name[t.neg[row]])
        p = (name[t.control_pos[row]], name[t.control_neg[row]])
        builder.add("isource", f"{label}.held", *q, current=g * drop(t, row, "control_pos", "control_neg"))
        builder.add("vccs", f"{label}.swap", *p, *q, transconductance=g)
        builder.add("isource", f"{label}.anchor", *p, current=-g * drop(t, row))

    v = netlist.vcvs
    for row, label in enumerate(v.name):
        mu = float(v.gain[row])
        p = (name[v.control_pos[row]], name[v.control_neg[row]])
        held = mu * drop(v, row, "control_pos", "control_neg")
        builder.add("vsource", f"{label}.held", name[v.pos[row]], name[v.neg[row]], voltage=held)
        writer.swapped_current(label, p, gain=-mu, anchor=float(i0[branch["vcvs"] + row]))

    h = netlist.ccvs
    for row, label in enumerate(h.name):
        r, c = float(h.transresistance[row]), int(h.control[row])
        builder.add(
            "vsource",
            f"{label}.held",
            name[h.pos[row]],
            name[h.neg[row]],
            voltage=r * float(i0[branch["vsource"] + c]),
        )
        anchor = -r * float(i0[branch["ccvs"] + row])
        tail[c] = writer.in_series(f"{label}.anchor", tail[c], "vsource", voltage=anchor)
        middle = writer.internal(f"{label}.swap")
        builder.add("ccvs", f"{label}.swap", tail[c], middle, control=f"{label}.held", transresistance=r)
        tail[c] = middle

    f = netlist.cccs
    for row, label in enumerate(f.name):
        gain, c = float(f.gain[row]), int(f.control[row])
        q = (name[f.pos[row]], name[f.neg[row]])
        builder.add("isource", f"{label}.held", *q, current=gain * float(i0[branch["vsource"] + c]))
        tail[c] = writer.in_series(f"{label}.anchor", tail[c], "vsource", voltage=gain * drop(f, row))
        tail[c] = writer.in_series(f"{label}.swap", tail[c], "vcvs", *q, gain=-gain)

    e = netlist.behavioural_current
    for row, label in enumerate(e.name):
        q = (name[e.pos[row]], name[e.neg[row]])
        builder.add("behavioural_current", label, *q, expression=e.expression[row])
        rest = 0.0
        for m, (entry, x, a) in enumerate(_linearised(e.expression[row], v0, i0)):
            rest += a * x
            part = f"{label}.{m}"
            if isinstance(entry, Drop):
                p = (name[entry.pos], name[entry.neg])
                builder.add("vccs", f"{part}.hold", *q, *p, transconductance=-a)
                builder.add("vccs", f"{part}.swap", *p, *q, transconductance=a)
                builder.add("isource", f"{part}.anchor", *p, current=-a * drop(e, row))
            else:
                c = entry.source
                builder.add("cccs", f"{part}.hold", *q, control=netlist.vsource.name[c], gain=-a)
                tail[c] = writer.in_series(f"{part}.anchor", tail[c], "vsource", voltage=a * drop(e, row))
                tail[c] = writer.in_series(f"{part}.swap", tail[c], "vcvs", *q, gain=-a)
        builder.add("isource", f"{label}.held", *q, current=rest)

    w = netlist.behavioural_voltage
    for row, label in enumerate(w.name):
        rest, low = 0.0, writer.internal(f"{label}.low")
        builder.add("behavioural_voltage", label, name[w.pos[row]], low, expression=w.expression[row])
        i_q = float(i0[branch["behavioural_voltage"] + row])
        for m, (entry, x, a) in enumerate(_linearised(w.expression[row], v0, i0)):
            rest += a * x
            part = f"{label}.{m}"
            if isinstance(entry, Drop):
                p = (name[entry.pos], name[entry.neg])
                low = writer.in_series(f"{part}.hold", low, "vcvs", *p, gain=-a)
            else:
                c = entry.source
                end = writer.internal(f"{part}.hold.end")
                source = netlist.vsource.name[c]
                builder.add("ccvs", f"{part}.hold", low, end, control=source, transresistance=-a)
                low = end
        builder.add("vsource", f"{label}.held", low, name[w.neg[row]], voltage=rest)
        for m, (entry, _, a) in enumerate(_linearised(w.expression[row], v0, i0)):
            part = f"{label}.{m}"
            if isinstance(entry, Drop):
                p = (name[entry.pos], name[entry.neg])
                writer.swapped_current(part, p, gain=-a, anchor=i_q, control=f"{label}.held")
            else:
                c = entry.source
                tail[c] = writer.in_series(f"{part}.anchor", tail[c], "vsource", voltage=-a * i_q)
                middle = writer.internal(f"{part}.swap")
                builder.add(
                    "ccvs", f"{part}.swap", tail[c], middle, control=f"{label}.held", transresistance=a
                )
                tail[c] = middle

    for row in sorted(sensed):
        end = name[netlist.vsource.neg[row]]
        builder.add("vsource", f"{netlist.vsource.name[row]}.end", tail[row], end, voltage=0.0)

    b = netlist.buffer
    for row, label in enumerate(b.name):
        p = (name[b.control_pos[row]], name[b.control_neg[row]])
        v_p = drop(b, row, "control_pos", "control_neg")
        gain, limit, offset = float(b.gain[row]), float(b.saturation[row]), float(b.offset[row])
        a = float(buffer_gain(v_p, gain, limit, offset))
        pos, neg = name[b.pos[row]], name[b.neg[row]]
        if np.isinf(b.saturation[row]):
            builder.add(
                "vsource", f"{label}.held", pos, neg, voltage=float(buffer_voltage(v_p, gain, limit, offset))
            )
        else:
            top, low = writer.internal(f"{label}.top"), writer.internal(f"{label}.low")
            builder.add("buffer", label, pos, top, *p, gain=gain, saturation=limit, offset=offset)
            builder.add("vcvs", f"{label}.hold", top, low, *p, gain=-a)
            builder.add("vsource", f"{label}.held", low, neg, voltage=a * v_p)
        writer.swapped_current(label, p, gain=-a, anchor=float(i0[branch["buffer"] + row]))
    return builder.build_like(netlist)


def dyadic_netlist(
    netlist: Netlist,
    voltage: FloatArray,
    nudge: Nudge,
    sample: int = 0,
    *,
    current: FloatArray | None = None,
) -> Netlist:
    """Return the circuit beside its nudged, linear, transposed copy; dual node names start with ``d.``.

    The outputs of the result are the dual voltages of the outputs of ``netlist``.

    Args:
        netlist: a flat netlist.
        voltage: its operating point (N,) V.
        nudge: beta and targets (B, K).
        sample: the row of the nudge's targets.
        current: its branch currents (M,) A; needed where behavioural sources sense currents.
    """
    _require_flat(netlist)
    builder = NetlistBuilder.extending(netlist)
    v0 = np.asarray(voltage)
    i0 = np.full(len(netlist.branch_names), np.nan) if current is None else np.asarray(current)
    name = ["0", *(f"d.{node}" for node in netlist.node_names[1:])]
    dual = builder.nodes(name)
    writer = _Writer(builder)

    def copy(kind: str, labels: list[str], pos: IntArray, neg: IntArray, **values: FloatArray) -> None:
        if labels:
            builder.add_rows(kind, [f"d.{label}" for label in labels], pos=dual[pos], neg=dual[neg], **values)

    r, c, d = netlist.resistor, netlist.capacitor, netlist.diode
    copy("resistor", list(r.name), r.pos, r.neg, conductance=r.conductance)
    copy("capacitor", list(c.name), c.pos, c.neg, capacitance=c.capacitance)
    copy(
        "inductor",
        list(netlist.inductor.name),
        netlist.inductor.pos,
        netlist.inductor.neg,
        inductance=netlist.inductor.inductance,
    )
    columns = {column: getattr(d, column) for column in DIODE_CURRENT}
    g_d = diode_conductance(v0[d.pos] - v0[d.neg], **columns)
    z = netlist.ideal_diode
    g_z = ideal_diode_conductance(v0[z.pos] - v0[z.neg], z.conductance)
    # A diode far in reverse without a parallel conductance conducts nothing, nor does an ideal one.
    for diodes, g in ((d, g_d), (z, g_z)):
        on = np.flatnonzero(g > 0)
        copy("resistor", [diodes.name[int(k)] for k in on], diodes.pos[on], diodes.neg[on], conductance=g[on])

    tail: list[str] = []
    sensed = _sensed(netlist)
    s = netlist.vsource
    for row, label in enumerate(s.name):
        end = writer.internal(f"d.{label}.tail") if row in sensed else name[s.neg[row]]
        tail.append(end)
        builder.add("vsource", f"d.{label}", name[s.pos[row]], end, voltage=0.0)

    t = netlist.vccs
    for row, label in enumerate(t.name):
        p = (name[t.control_pos[row]], name[t.control_neg[row]])
        q = (name[t.pos[row]], name[t.neg[row]])
        builder.add("vccs", f"d.{label}", *p, *q, transconductance=float(t.transconductance[row]))

    b = netlist.buffer
    v_p = v0[b.control_pos] - v0[b.control_neg]
    slopes = buffer_gain(v_p, b.gain, b.saturation, b.offset)
    for table, gains in ((netlist.vcvs, netlist.vcvs.gain), (b, slopes)):
        for row, label in enumerate(table.name):
            p = (name[table.control_pos[row]], name[table.control_neg[row]])
            builder.add("vsource", f"d.{label}.held", name[table.pos[row]], name[table.neg[row]], voltage=0.0)
            writer.swapped_current(f"d.{label}", p, gain=-float(gains[row]))

    h = netlist.ccvs
    for row, label in enumerate(h.name):
        k = int(h.control[row])
        builder.add("vsource", f"d.{label}.held", name[h.pos[row]], name[h.neg[row]], voltage=0.0)
        middle = writer.internal(f"d.{label}.swap")
        builder.add(
            "ccvs",
            f"d.{label}.swap",
            tail[k],
            middle,
            control=f"d.{label}.held",
            transresistance=float(h.transresistance[row]),
        )
        tail[k] = middle

    f = netlist.cccs
    for row, label in enumerate(f.name):
        k = int(f.control[row])
        q = (name[f.pos[row]], name[f.neg[row]])
        tail[k] = writer.in_series(f"d.{label}.swap", tail[k], "vcvs", *q, gain=-float(f.gain[row]))

    for behavioural in (netlist.behavioural_current, netlist.behavioural_voltage):
        is_current = behavioural is netlist.behavioural_current
        for row, label in enumerate(behavioural.name):
            q = (name[behavioural.pos[row]], name[behavioural.neg[row]])
            if not is_current:
                builder.add("vsource", f"d.{label}.held", *q, voltage=0.0)
            for m, (entry, x, a) in enumerate(_linearised(behavioural.expression[row], v0, i0)):
                if np.isnan(x):
                    raise NetlistError("needs the branch currents", object=label, field="current")
                part = f"d.{label}.{m}"
                if isinstance(entry, Drop):
                    p = (name[entry.pos], name[entry.neg])
                    if is_current:
                        builder.add("vccs", f"{part}.swap", *p, *q, transconductance=a)
                    else:
                        writer.swapped_current(part, p, gain=-a, control=f"d.{label}.held")
                    continue
                k = entry.source
                if is_current:
                    tail[k] = writer.in_series(f"{part}.swap", tail[k], "vcvs", *q, gain=-a)
                else:
                    middle = writer.internal(f"{part}.swap")
                    held = f"d.{label}.held"
                    builder.add("ccvs", f"{part}.swap", tail[k], middle, control=held, transresistance=a)
                    tail[k] = middle
    for row in sorted(sensed):
        builder.add("vsource", f"d.{s.name[row]}.end", tail[row], name[s.neg[row]], voltage=0.0)

    for load in netlist.loads:
        y = v0[load.pos] - v0[load.neg]
        jacobian = load.amplitude * softmax_conductance(y, load.scale)
        for k in range(len(load.pos)):
            for m in range(len(load.pos)):
                builder.add(
                    "vccs",
                    f"d.{load.name}.{k}.{m}",
                    *(name[node] for node in (load.pos[k], load.neg[k], load.pos[m], load.neg[m])),
                    transconductance=float(jacobian[k, m]),
                )

    ports = netlist.outputs
    labels = [f"nudge.{k}" for k in range(len(ports.pos))]
    drive = nudge.rows(slice(sample, sample + 1)).current(ports.read(v0)[None])[0]
    builder.add_rows("isource", labels, pos=dual[ports.pos], neg=dual[ports.neg], current=drive)
    built = builder.build_like(netlist)
    return replace(built, outputs=OutputPort(pos=dual[ports.pos], neg=dual[ports.neg]))


class _Writer:
    """Element groups that both derivations write."""

    def __init__(self, builder: NetlistBuilder) -> None:
        self.builder = builder

    def internal(self, name: str) -> str:
        self.builder.node(name)
        return name

    def in_series(self, label: str, start: str, kind: str, *control: str, **values: Any) -> str:
        """Add an element from ``start`` to a new node and return that node."""
        end = self.internal(f"{label}.end")
        self.builder.add(kind, label, start, end, *control, control=None, **values)
        return end

    def swapped_current(
        self,
        label: str,
        port: tuple[str, str],
        *,
        gain: float,
        anchor: float = 0.0,
        control: str | None = None,
    ) -> None:
        """Add the current ``gain * (i - anchor)`` leaving ``port``, i being that of ``control``, by default
        of ``label.held``."""
        self.builder.add("cccs", f"{label}.swap", *port, control=control or f"{label}.held", gain=gain)
        if anchor:
            self.builder.add("isource", f"{label}.anchor", *port, current=-gain * anchor)


def _sensed(netlist: Netlist) -> set[int]:
    """Return the rows of the voltage sources whose current something reads."""
    expressions = (*netlist.behavioural_current.expression, *netlist.behavioural_voltage.expression)
    read = {e.source for expression in expressions for e in expression.inputs if isinstance(e, Current)}
    return read | {int(c) for c in (*netlist.cccs.control, *netlist.ccvs.control)}


def _linearised(
    expression: Expression, v0: FloatArray, i0: FloatArray
) -> list[tuple[Drop | Current, float, float]]:
    """Return each input of an expression, its value at the anchor, and the slope there."""
    x = [v0[e.pos] - v0[e.neg] if isinstance(e, Drop) else i0[e.source] for e in expression.inputs]
    _, slopes = expression.formula.gradient(np.array(x, dtype=np.float64))
    return [(e, float(at), float(a)) for e, at, a in zip(expression.inputs, x, slopes, strict=True)]


def _require_flat(netlist: Netlist) -> None:
    if netlist.crossbars or netlist.banks or netlist.senses:
        raise NetlistError(
            "needs a flat netlist", object=netlist.title, remedy="Call flatten(netlist).netlist first."
        )
