"""The circuit equations in plain NumPy: residual, Jacobian products, power.

No solver iterates with these: they are the referee. ``F(x)`` holds, per node, the current that leaves
it into the elements [A] and, per voltage-defined branch, its equation [V]. Blocks are
evaluated as blocks: a crossbar with line resistance by what its ports draw, and KCL at the points
inside it is checked apart. B samples, N nodes, M branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from circuitsim.netlist import Crossbar, Netlist, Values
from circuitsim.netlist.behavioural import BehaviouralGroup
from circuitsim.netlist.models import (
    DIODE_CURRENT,
    buffer_gain,
    buffer_voltage,
    diode_conductance,
    diode_current,
    ideal_diode_conductance,
    ideal_diode_current,
    softmax,
)
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.correction import Correction
from circuitsim.solver.lines import Interior, LineCurrents, held_line_currents, line_currents
from circuitsim.solver.point import Drive

__all__ = ["Equations", "accumulate", "drive_residual"]

_ROUNDINGS = 4 * np.finfo(np.float64).eps


@dataclass(frozen=True, kw_only=True, eq=False)
class Equations:
    """The equations of one netlist with one set of values."""

    netlist: Netlist
    values: Values
    interiors: Mapping[str, Interior] = field(default_factory=dict)
    """What is known of wired crossbars, by name: used at the port voltages that it belongs to."""
    _currents: dict[str, tuple[FloatArray, FloatArray, LineCurrents]] = field(
        default_factory=dict, init=False, repr=False
    )

    @cached_property
    def _starts(self) -> dict[str, int]:
        """First branch of every voltage-defined table and block."""
        n, starts = self.netlist, dict(self.netlist.branch_starts)
        start = starts.pop("blocks")
        for bank in n.banks:
            starts[f"bank {bank.name}"] = start
            start += len(bank.control) * (1 if bank.out_neg is None else 2)
        for sense in n.senses:
            starts[f"sense {sense.name}"] = start
            start += len(sense.bit)
        starts["end"] = start
        return starts

    @property
    def n_branches(self) -> int:
        return self._starts["end"]

    @property
    def _diode(self) -> dict[str, FloatArray]:
        columns = self.values.tables["diode"]
        return {name: columns[name] for name in DIODE_CURRENT}

    @cached_property
    def largest_conductance(self) -> float:
        """Largest conductance of a resistance [S], ideal diodes apart: see `rounding`."""
        devices = [g for pair in self.values.crossbars.values() for g in pair if g is not None]
        sizes = [self.values.tables["resistor"]["conductance"], *devices]
        wires = [1 / crossbar.r_wire for crossbar in self.netlist.crossbars if crossbar.wired]
        return max((*(float(g.max()) for g in sizes if g.size), *wires), default=0.0)

    def rounding(self, v: FloatArray, moved: FloatArray | None = None) -> FloatArray:
        """Return the current (B,) A that voltages of relative error 1 would leave at a node: times the
        precision it is what rounded voltages make of KCL.

        An ideal diode counts where it conducts, or blocks by no more than rounding. At ground its own small
        voltage is as precise as any other, and this is no more than its current. Where v is the sum of an
        anchor and a displacement ``moved`` (B, N) V, it is as precise as that.
        """
        of = np.abs(v) if moved is None else np.maximum(np.abs(v), np.abs(moved))
        size = self.largest_conductance * of.max(axis=1, initial=0.0)
        z = self.netlist.ideal_diode
        if len(z):
            reach = np.maximum(of[:, z.pos], of[:, z.neg])
            conducts = _drop(v, z.pos, z.neg) > -_ROUNDINGS * reach
            currents = self.values.tables["ideal_diode"]["conductance"] * reach
            size = np.maximum(size, np.where(conducts, currents, 0.0).max(axis=1))
        return size

    def residual(
        self, v: FloatArray, i: FloatArray, source_voltage: FloatArray, time: float | FloatArray = 0.0
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return ``F`` at nodes (B, N) A and branches (B, M) V, and the largest element current (B,) A.

        ``source_voltage`` is (B, n_vsource) V; ``time`` [s] is what behavioural sources see. Inductors are
        shorts, capacitors carry nothing.
        """
        node, largest = self._resistive(v)
        branch = np.zeros_like(i)
        n, t = self.netlist, self.values.tables
        if i.shape[1]:
            largest = np.maximum(largest, np.abs(i).max(axis=1))
        if len(n.isource):
            _leave(
                node,
                n.isource.pos,
                n.isource.neg,
                np.broadcast_to(t["isource"]["current"], (len(v), len(n.isource))),
            )
        self._linear_sources(node, branch, v, i)
        k = slice(0, len(n.vsource))
        branch[:, k] -= source_voltage
        b = n.buffer
        if len(b):
            p = t["buffer"]
            k = self._rows("buffer", len(b))
            branch[:, k] -= buffer_voltage(_drop(v, b.control_pos, b.control_neg), **p)
        currents, voltages = n.behavioural_groups
        for group in currents:
            out, sources = group.formula.value(group.inputs(v, i), time), n.behavioural_current
            largest = np.maximum(largest, np.abs(out).max(axis=1))
            _leave(node, sources.pos[group.rows], sources.neg[group.rows], out)
        for group in voltages:
            out = group.formula.value(group.inputs(v, i), time)
            branch[:, self._starts["behavioural_voltage"] + group.rows] -= out
        for bank in n.banks:
            values = self.values.banks[bank.name]
            out = buffer_voltage(v[:, bank.control], values["gain"], values["saturation"], values["offset"])
            self._bank(node, branch, v, i, bank.name, out, values["back_gain"])
        for load in n.loads:
            y = v[:, load.pos] - v[:, load.neg]
            current = load.amplitude * (softmax(y, load.scale) - load.target)
            _leave(node, load.pos, load.neg, current)
        node[:, 0] = 0.0
        return node, branch, largest

    def jacobian_product(
        self,
        v0: FloatArray,
        i0: FloatArray,
        dv: FloatArray,
        di: FloatArray,
        *,
        transpose: bool = False,
        time: float = 0.0,
        resistive: bool = True,
    ) -> tuple[FloatArray, FloatArray]:
        """Return ``J dx`` or ``J^T dx`` at nodes (B, N) and branches (B, M), with J at voltages and currents
        v0, i0.

        Without ``resistive``, resistances and diodes are left out: they are the same in J and J^T.
        """
        n, t = self.netlist, self.values.tables
        node = self._resistive(dv, small_signal_at=v0)[0] if resistive else np.zeros_like(dv)
        branch = np.zeros_like(di)
        self._linear_sources(node, branch, dv, di, transpose=transpose)
        b = n.buffer
        if len(b):
            k = self._rows("buffer", len(b))
            gain = buffer_gain(_drop(v0, b.control_pos, b.control_neg), **t["buffer"])
            if transpose:
                _leave(node, b.control_pos, b.control_neg, -gain * di[:, k])
            else:
                branch[:, k] -= gain * _drop(dv, b.control_pos, b.control_neg)
        self._behavioural_product(node, branch, (v0, i0, time), dv, di, transpose)
        for bank in n.banks:
            values = self.values.banks[bank.name]
            gain = buffer_gain(v0[:, bank.control], values["gain"], values["saturation"], values["offset"])
            back = np.broadcast_to(values["back_gain"], gain.shape)
            if transpose:
                gain, back = back, gain
            self._bank(node, branch, dv, di, bank.name, gain * dv[:, bank.control], back)
        for load in n.loads:
            p = softmax(v0[:, load.pos] - v0[:, load.neg], load.scale)
            dy = dv[:, load.pos] - dv[:, load.neg]
            current = load.amplitude / load.scale * p * (dy - (p * dy).sum(axis=1, keepdims=True))
            _leave(node, load.pos, load.neg, current)
        node[:, 0] = 0.0
        return node, branch

    def _behavioural_product(
        self,
        node: FloatArray,
        branch: FloatArray,
        at: tuple[FloatArray, FloatArray, float],
        dv: FloatArray,
        di: FloatArray,
        transpose: bool,
    ) -> None:
        """Add what behavioural sources contribute to ``J dx`` or ``J^T dx``; J is taken at (v, i, time)."""
        v0, i0, time = at
        sources = self.netlist.behavioural_current
        currents, voltages = self.netlist.behavioural_groups

        def transposed(group: BehaviouralGroup, slopes: FloatArray, out: FloatArray) -> None:
            for m, is_drop in enumerate(group.is_drop):
                share, (first, second) = slopes[:, :, m] * out, group.ends[m]
                if is_drop:
                    _leave(node, first, second, share)
                else:
                    accumulate(branch, first, share)

        for group in currents:
            _, slopes = group.formula.gradient(group.inputs(v0, i0), time)
            pos, neg = sources.pos[group.rows], sources.neg[group.rows]
            if transpose:
                transposed(group, slopes, _drop(dv, pos, neg))
            else:
                _leave(node, pos, neg, (slopes * group.inputs(dv, di)).sum(axis=2))
        for group in voltages:
            _, slopes = group.formula.gradient(group.inputs(v0, i0), time)
            k = self._starts["behavioural_voltage"] + group.rows
            if transpose:
                transposed(group, slopes, -di[:, k])
            else:
                branch[:, k] -= (slopes * group.inputs(dv, di)).sum(axis=2)

    def _faults(
        self,
        faults: Correction,
        v0: FloatArray,
        change: tuple[FloatArray, FloatArray],
        node: FloatArray,
        branch: FloatArray,
    ) -> None:
        """Add what sets a correction apart from a perfect one, at v0 (B, N) and for changes from there."""
        dv, di = change
        for bank in self.netlist.banks:
            p = self.values.banks[bank.name]
            slope = buffer_gain(v0[:, bank.control], p["gain"], p["saturation"], p["offset"])
            off, error = faults.forward.get(bank.name, 1.0), faults.anchor.get(bank.name, 0.0)
            wrong = (off - 1.0) * dv[:, bank.control] - off * error
            start, size = self._starts[f"bank {bank.name}"], len(bank.control)
            current = np.zeros((len(dv), size))
            for sign, ends in ((1.0, bank.out_pos), (-1.0, bank.out_neg)):
                if ends is not None:
                    branch[:, start : start + size] += sign * (slope - p["back_gain"]) * wrong
                    current += sign * di[:, start : start + size]
                    start += size
            off, error = faults.back.get(bank.name, 1.0), faults.anchor_current.get(bank.name, 0.0)
            wrong = (off - 1.0) * current - off * error
            accumulate(node, bank.control, (p["back_gain"] - slope) * wrong)
        for sense in self.netlist.senses:
            k, gain = self._rows(f"sense {sense.name}", len(sense.bit)), self.values.senses[sense.name]
            off, error = faults.forward.get(sense.name, 1.0), faults.anchor_current.get(sense.name, 0.0)
            accumulate(node, sense.output, gain * ((off - 1.0) * di[:, k] - off * error))
            off, error = faults.back.get(sense.name, 1.0), faults.anchor.get(sense.name, 0.0)
            branch[:, k] -= gain * ((off - 1.0) * dv[:, sense.output] - off * error)

    def power(self, v: FloatArray) -> FloatArray:
        """Return the power dissipated in resistances and diodes (B,) W."""
        n, t = self.netlist, self.values.tables
        total = np.zeros(len(v))
        r, d = n.resistor, n.diode
        if len(r):
            total += (_drop(v, r.pos, r.neg) ** 2) @ t["resistor"]["conductance"]
        if len(d):
            drop = _drop(v, d.pos, d.neg)
            total += (drop * diode_current(drop, **self._diode)).sum(axis=1)
        z = n.ideal_diode
        if len(z):
            drop = _drop(v, z.pos, z.neg)
            total += (drop * ideal_diode_current(drop, **t["ideal_diode"])).sum(axis=1)
        for crossbar in n.crossbars:
            if crossbar.wired:
                total += self._line_currents(crossbar, v).power
                continue
            bit = v[:, crossbar.bit]
            for words, g in n.device_conductances(crossbar, self.values):
                w = v[:, words]
                total += (w * w) @ g.sum(axis=1) + (bit * bit) @ g.sum(axis=0)
                total -= 2 * ((w @ g) * bit).sum(axis=1)
        return total

    def grounded_branch_currents(self, v: FloatArray) -> FloatArray:
        """Return the branch currents (B, M) A that node voltages imply, by KCL at each driven node.

        Every branch must end at ground and be alone at its node.
        """
        node, _ = self._resistive(v)
        n = self.netlist
        if len(n.isource):
            currents = np.broadcast_to(self.values.tables["isource"]["current"], (len(v), len(n.isource)))
            _leave(node, n.isource.pos, n.isource.neg, currents)
        tables: tuple[Any, ...] = n.voltage_defined
        ends = [table.pos for table in tables]
        for bank in n.banks:
            ends += [bank.out_pos] + ([] if bank.out_neg is None else [bank.out_neg])
        ends += [sense.bit for sense in n.senses]
        return -node[:, np.concatenate(ends)]

    def interior_residual(self, v: FloatArray) -> FloatArray:
        """Return the largest KCL residual (B,) A at the points of wired lines."""
        residual = np.zeros(len(v))
        for crossbar in self.netlist.crossbars:
            if crossbar.wired:
                residual = np.maximum(residual, self._line_currents(crossbar, v).residual)
        return residual

    def _line_currents(self, crossbar: Crossbar, v: FloatArray) -> LineCurrents:
        """Return the currents of a wired crossbar, its interior being known or solved for port voltages."""
        word, bit = v[:, crossbar.lines], v[:, crossbar.bit]
        last = self._currents.get(crossbar.name)
        if last is not None and np.array_equal(last[0], word) and np.array_equal(last[1], bit):
            return last[2]
        conductance = crossbar.cells(*self.values.crossbars[crossbar.name])
        known = self.interiors.get(crossbar.name)
        if known is not None and np.array_equal(known.word, word) and np.array_equal(known.bit, bit):
            found = line_currents(crossbar, conductance, known)
        else:
            found = held_line_currents(crossbar, conductance, word, bit)
        self._currents[crossbar.name] = word, bit, found
        return found

    def _rows(self, kind: str, length: int) -> slice:
        return slice(self._starts[kind], self._starts[kind] + length)

    def _resistive(
        self, v: FloatArray, small_signal_at: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the currents (B, N) that leave nodes into resistances and diodes, and the largest."""
        n, t = self.netlist, self.values.tables
        node = np.zeros_like(v)
        largest = np.zeros(len(v))
        r, d = n.resistor, n.diode
        if len(r):
            current = t["resistor"]["conductance"] * _drop(v, r.pos, r.neg)
            largest = np.maximum(largest, np.abs(current).max(axis=1))
            _leave(node, r.pos, r.neg, current)
        if len(d):
            drop = _drop(v, d.pos, d.neg)
            if small_signal_at is None:
                current = diode_current(drop, **self._diode)
            else:
                current = drop * diode_conductance(_drop(small_signal_at, d.pos, d.neg), **self._diode)
            largest = np.maximum(largest, np.abs(current).max(axis=1))
            _leave(node, d.pos, d.neg, current)
        z = n.ideal_diode
        if len(z):
            drop = _drop(v, z.pos, z.neg)
            if small_signal_at is None:
                current = ideal_diode_current(drop, **t["ideal_diode"])
            else:
                at = _drop(small_signal_at, z.pos, z.neg)
                current = drop * ideal_diode_conductance(at, **t["ideal_diode"])
            largest = np.maximum(largest, np.abs(current).max(axis=1))
            _leave(node, z.pos, z.neg, current)
        for crossbar in n.crossbars:
            if crossbar.wired:
                lines = self._line_currents(crossbar, v)
                accumulate(node, crossbar.lines, lines.word)
                accumulate(node, crossbar.bit, lines.bit)
                largest = np.maximum(largest, lines.largest)
                continue
            bit = v[:, crossbar.bit]
            for words, g in n.device_conductances(crossbar, self.values):
                w = v[:, words]
                from_word = w * g.sum(axis=1) - bit @ g.T
                into_bit = w @ g - bit * g.sum(axis=0)
                accumulate(node, words, from_word)
                accumulate(node, crossbar.bit, -into_bit)
                if into_bit.size:
                    largest = np.maximum(largest, np.abs(into_bit).max(axis=1))
        return node, largest

    def _linear_sources(
        self, node: FloatArray, branch: FloatArray, v: FloatArray, i: FloatArray, *, transpose: bool = False
    ) -> None:
        """Add what linear controlled sources and branch incidence contribute, or their transposes."""
        n, t = self.netlist, self.values.tables
        tables: tuple[Any, ...] = n.voltage_defined
        for table in tables:
            if len(table):
                k = self._rows(table.kind, len(table))
                _leave(node, table.pos, table.neg, i[:, k])
                branch[:, k] += _drop(v, table.pos, table.neg)
        if len(n.vccs):
            c, g = n.vccs, t["vccs"]["transconductance"]
            if transpose:
                _leave(node, c.control_pos, c.control_neg, g * _drop(v, c.pos, c.neg))
            else:
                _leave(node, c.pos, c.neg, g * _drop(v, c.control_pos, c.control_neg))
        if len(n.vcvs):
            e, gain, k = n.vcvs, t["vcvs"]["gain"], self._rows("vcvs", len(n.vcvs))
            if transpose:
                _leave(node, e.control_pos, e.control_neg, -gain * i[:, k])
            else:
                branch[:, k] -= gain * _drop(v, e.control_pos, e.control_neg)
        if len(n.cccs):
            f, gain = n.cccs, t["cccs"]["gain"]
            if transpose:
                accumulate(branch, f.control, gain * _drop(v, f.pos, f.neg))
            else:
                _leave(node, f.pos, f.neg, gain * i[:, f.control])
        if len(n.ccvs):
            h, r, k = n.ccvs, t["ccvs"]["transresistance"], self._rows("ccvs", len(n.ccvs))
            if transpose:
                accumulate(branch, h.control, -r * i[:, k])
            else:
                branch[:, k] -= r * i[:, h.control]
        for sense in n.senses:
            k = self._rows(f"sense {sense.name}", len(sense.bit))
            gain = self.values.senses[sense.name]
            accumulate(node, sense.bit, i[:, k])
            branch[:, k] += v[:, sense.bit]
            if transpose:
                branch[:, k] -= gain * v[:, sense.output]
            else:
                accumulate(node, sense.output, -gain * i[:, k])

    def _bank(
        self,
        node: FloatArray,
        branch: FloatArray,
        v: FloatArray,
        i: FloatArray,
        name: str,
        out: FloatArray,
        back: FloatArray,
    ) -> None:
        bank = next(b for b in self.netlist.banks if b.name == name)
        start, size = self._starts[f"bank {name}"], len(bank.control)
        for sign, ends in ((1.0, bank.out_pos), (-1.0, bank.out_neg)):
            if ends is None:
                continue
            k = slice(start, start + size)
            start += size
            accumulate(node, ends, i[:, k])
            branch[:, k] += v[:, ends] - sign * out
            accumulate(node, bank.control, -sign * back * i[:, k])


def drive_residual(
    equations: Equations, drive: Drive, v: FloatArray, i: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the residual of a driven circuit: `Equations.residual` plus correction and nudge."""
    netlist = equations.netlist
    node, branch, largest = equations.residual(v, i, netlist.source_voltage(drive.inputs))
    if drive.anchor is not None:
        v0, i0 = drive.anchor.node_voltage, drive.anchor.branch_current
        # What J and J^T share would leave its rounding, which at an ideal diode is no small current.
        forward = equations.jacobian_product(v0, i0, v - v0, i - i0, resistive=False)
        swapped = equations.jacobian_product(v0, i0, v - v0, i - i0, transpose=True, resistive=False)
        node += swapped[0] - forward[0]
        branch += swapped[1] - forward[1]
        if drive.correction is not None:
            equations._faults(drive.correction, v0, (v - v0, i - i0), node, branch)
    if drive.nudge is not None:
        ports = netlist.outputs
        _leave(node, ports.pos, ports.neg, drive.nudge.current(ports.read(v)))
    node[:, 0] = 0.0
    return node, branch, largest


def _drop(v: FloatArray, pos: IntArray, neg: IntArray) -> FloatArray:
    return v[:, pos] - v[:, neg]


def _leave(node: FloatArray, pos: IntArray, neg: IntArray, current: FloatArray) -> None:
    """Add currents (B, n) that leave ``pos`` and enter ``neg``."""
    accumulate(node, pos, current)
    accumulate(node, neg, -current)


def accumulate(total: FloatArray, index: IntArray, amount: FloatArray) -> None:
    """``total[:, index] += amount``, counting repeated indices every time."""
    if not len(index):
        return
    if np.bincount(index).max() == 1:
        total[:, index] += amount
        return
    amounts = np.broadcast_to(amount, (len(total), len(index)))
    if len(index) < len(total):
        for place, column in zip(index, amounts.T, strict=True):
            total[:, place] += column
        return
    for row, part in zip(total, amounts, strict=True):
        row += np.bincount(index, part, len(row))
