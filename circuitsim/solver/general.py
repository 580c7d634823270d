"""The general method: sparse MNA for any netlist, planned once, solved per sample by Newton.

Nodes that a source ties to ground are known and leave the equations, with the branch of that source.
What remains has one sparsity pattern, made structurally symmetric so that the free, nudged and
corrected phases and the transposed solve share the pattern, the pivots and the factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsim.errors import NetlistError
from circuitsim.netlist import GROUND, CurrentSense, Flat, Netlist, Values, flatten
from circuitsim.netlist.expressions import Current
from circuitsim.netlist.models import buffer_gain
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.behavioural import BehaviouralPlan
from circuitsim.solver.correction import Correction
from circuitsim.solver.equations import accumulate
from circuitsim.solver.kernels.newton import Circuit, adjoint_batch, newton_batch, small_signal_values
from circuitsim.solver.kernels.sparse_lu import OK, LUPlan, analyse
from circuitsim.solver.lines import point_voltages
from circuitsim.solver.point import Drive, OperatingPoint, SolverSettings
from circuitsim.solver.stamps import (
    Entries,
    Stamps,
    linear_parameters,
    linear_stamps,
    storage_parameters,
    storage_stamps,
)
from circuitsim.solver.threads import share_batch

__all__ = ["GeneralPlan", "GeneralResult"]


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneralResult:
    """Node voltages (B, N) and branch currents (B, M) of the block netlist, iterations, status."""

    node_voltage: FloatArray
    branch_current: FloatArray
    iterations: IntArray
    status: NDArray[np.int8]


class GeneralPlan:
    """Everything about a netlist that does not depend on its values."""

    method = "general"

    def __init__(self, netlist: Netlist, *, flat: Flat | None = None) -> None:
        self.netlist = netlist
        self.flat = flat or flatten(netlist)
        self._number_unknowns()
        self._find_pattern()
        self._lu: LUPlan | None = None

    @property
    def n_unknowns(self) -> int:
        return len(self.is_node)

    def _number_unknowns(self) -> None:
        n = self.flat.netlist
        sensed = np.zeros(len(n.vsource), dtype=np.bool_)
        sensed[n.cccs.control] = True
        sensed[n.ccvs.control] = True
        for expression in (*n.behavioural_current.expression, *n.behavioural_voltage.expression):
            sensed[[entry.source for entry in expression.inputs if isinstance(entry, Current)]] = True
        self.fixing_source = np.full(n.n_nodes, -1, dtype=np.int64)
        fixed_sign = np.zeros(n.n_nodes)
        eliminated = np.zeros(len(n.branch_names), dtype=np.bool_)
        for row in np.flatnonzero(~sensed & ((n.vsource.pos == GROUND) | (n.vsource.neg == GROUND))):
            pos, neg = int(n.vsource.pos[row]), int(n.vsource.neg[row])
            node, sign = (pos, 1.0) if neg == GROUND else (neg, -1.0)
            if self.fixing_source[node] < 0:
                self.fixing_source[node], fixed_sign[node] = row, sign
                eliminated[row] = True
        self.fixed_nodes = np.flatnonzero(self.fixing_source >= 0)
        self._fixed_row = self.fixing_source[self.fixed_nodes]
        self._fixed_sign = fixed_sign[self.fixed_nodes]
        free = self.fixing_source < 0
        free[GROUND] = False
        self.node_unknown = np.full(n.n_nodes, -1, dtype=np.int64)
        self.node_unknown[free] = np.arange(free.sum())
        self.branch_unknown = np.full(len(eliminated), -1, dtype=np.int64)
        self.branch_unknown[~eliminated] = free.sum() + np.arange((~eliminated).sum())
        self.free_nodes = np.flatnonzero(free)
        self.free_branches = np.flatnonzero(~eliminated)
        self.is_node = np.arange(free.sum() + (~eliminated).sum()) < free.sum()
        place = np.full(n.n_nodes, -1, dtype=np.int64)
        place[self.fixed_nodes] = np.arange(len(self.fixed_nodes))
        self._fixed_place = place

    def _find_pattern(self) -> None:
        n = self.flat.netlist
        unknown = np.concatenate([self.node_unknown, self.branch_unknown])
        linear, storage = linear_stamps(n), storage_stamps(n)

        def free(entries: Entries) -> IntArray:
            pairs = np.stack([unknown[entries.row], unknown[entries.col]], axis=1)
            return pairs[(pairs >= 0).all(axis=1)]

        self._diode_pairs = self._quads(n.diode.pos, n.diode.neg, n.diode.pos, n.diode.neg)
        z = n.ideal_diode
        self._ideal_pairs = self._quads(z.pos, z.neg, z.pos, z.neg)
        amplifiers = n.buffer
        start = n.n_nodes + n.branch_starts["buffer"]
        self._buffer_rows = unknown[start + np.arange(len(amplifiers))]
        self._buffer_pairs = np.stack(
            [
                np.stack([self._buffer_rows, self.node_unknown[amplifiers.control_pos]], axis=1),
                np.stack([self._buffer_rows, self.node_unknown[amplifiers.control_neg]], axis=1),
            ],
            axis=1,
        )
        self._behavioural = BehaviouralPlan(n, self.node_unknown, self.branch_unknown)
        groups = [(load.pos, load.neg) for load in n.loads] + [(n.outputs.pos, n.outputs.neg)]
        self._load_groups = groups
        quads = []
        for pos, neg in groups:
            k, m = (index.reshape(-1) for index in np.indices((len(pos), len(pos))))
            quads.append(self._quads(pos[k], neg[k], pos[m], neg[m]))
        self._load_pairs = quads

        size = len(self.is_node)
        entries = [free(linear), free(storage)]
        nonlinear = (
            self._diode_pairs,
            self._ideal_pairs,
            self._buffer_pairs,
            self._behavioural.pairs,
            *quads,
        )
        entries += [pairs.reshape(-1, 2) for pairs in nonlinear]
        entries.append(np.repeat(np.arange(size)[:, None], 2, axis=1))
        pairs = np.concatenate(entries)
        pairs = pairs[(pairs >= 0).all(axis=1)]
        # Key = column-major position; the transposes make the pattern structurally symmetric.
        keys = np.unique(np.concatenate([pairs[:, 1] * size + pairs[:, 0], pairs[:, 0] * size + pairs[:, 1]]))
        self._keys = keys
        self.indices = keys % size if size else keys
        columns = keys // size if size else keys
        self.indptr = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=size))]).astype(np.int64)
        self.transpose = np.searchsorted(keys, self.indices * size + columns)
        self.diagonal = np.searchsorted(keys, np.arange(size) * (size + 1))
        # What known voltages drive: a CSR-like list, summed once per (row, known node).
        place = np.concatenate([self._fixed_place, np.full(len(self.branch_unknown), -1)])
        width = max(1, len(self.fixed_nodes))

        def tied(entries: Entries) -> tuple[NDArray[np.bool_], IntArray]:
            chosen = (unknown[entries.row] >= 0) & (place[entries.col] >= 0)
            return chosen, unknown[entries.row[chosen]] * width + place[entries.col[chosen]]

        tied_keys = np.unique(np.concatenate([tied(linear)[1], tied(storage)[1]]))
        self._tied_row = tied_keys // width
        self._tied_col = tied_keys % width

        def stamps(entries: Entries) -> tuple[Stamps, Stamps]:
            kept = (unknown[entries.row] >= 0) & (unknown[entries.col] >= 0)
            driven, driven_keys = tied(entries)
            return (
                Stamps(
                    slot=self._slots(free(entries)),
                    which=entries.which[kept],
                    sign=entries.sign[kept],
                    size=len(keys),
                ),
                Stamps(
                    slot=np.searchsorted(tied_keys, driven_keys),
                    which=entries.which[driven],
                    sign=entries.sign[driven],
                    size=len(tied_keys),
                ),
            )

        self._linear, self._tied = stamps(linear)
        self._storage, self._tied_storage = stamps(storage)

    def _quads(self, pos: IntArray, neg: IntArray, cpos: IntArray, cneg: IntArray) -> IntArray:
        """Return (row, column) of the four entries of a transconductance, shape (n, 4, 2)."""
        u = self.node_unknown
        pairs = [(pos, cpos), (pos, cneg), (neg, cpos), (neg, cneg)]
        return np.stack([np.stack([u[a], u[b]], axis=1) for a, b in pairs], axis=1)

    def _slots(self, pairs: IntArray) -> IntArray:
        size = len(self.is_node)
        rows, cols = pairs[..., 0], pairs[..., 1]
        slot = np.searchsorted(self._keys, cols * size + rows)
        return np.ascontiguousarray(np.where((rows >= 0) & (cols >= 0), slot, -1))

    def _circuit(self, values: Values, nudge: Any) -> tuple[Circuit, FloatArray, Values]:
        """Return kernel arrays, and the coefficients by which known voltages enter."""
        n = self.flat.netlist
        flat_values = self.flat.values(values)
        t = flat_values.tables
        parameters = linear_parameters(t)
        linear = self._linear.assemble(parameters)
        amplitude = [load.amplitude for load in n.loads]
        scale = [load.scale for load in n.loads]
        groups, load_pairs = self._load_groups[:-1], self._load_pairs[:-1]
        if nudge is not None and nudge.kind == "softmax":
            amplitude.append(nudge.amplitude)
            scale.append(nudge.scale)
            groups, load_pairs = self._load_groups, self._load_pairs
        elif nudge is not None:
            # A quadratic nudge is a conductance: part of the linear matrix.
            size = len(n.outputs.pos)
            g = nudge.beta * nudge.conductance
            diagonal = self._load_pairs[-1].reshape(size, size, 4, 2)[np.arange(size), np.arange(size)]
            slots = self._slots(diagonal)
            for corner, sign in enumerate((1.0, -1.0, -1.0, 1.0)):
                slot = slots[:, corner]
                np.add.at(linear, slot[slot >= 0], sign * g)
        d, b = t["diode"], t["buffer"]
        lengths = [len(pos) for pos, _ in groups]
        nothing = np.empty(0, np.int64)
        circuit = Circuit(
            indptr=self.indptr,
            indices=self.indices,
            transpose=self.transpose,
            diagonal=self.diagonal,
            linear=linear,
            is_node=self.is_node,
            node_unknown=self.node_unknown,
            d_pos=_own(n.diode.pos),
            d_neg=_own(n.diode.neg),
            d_slot=self._slots(self._diode_pairs),
            d_is=_own(d["saturation_current"]),
            d_slope=_own(d["slope_voltage"]),
            d_gmin=_own(d["parallel_conductance"]),
            d_bv=_own(d["breakdown_voltage"]),
            d_bv_slope=_own(d["breakdown_slope"]),
            d_cjo=_own(d["junction_capacitance"]),
            d_vj=_own(d["junction_potential"]),
            d_m=_own(d["grading"]),
            d_fc=_own(d["depletion_limit"]),
            d_tt=_own(d["transit_time"]),
            z_pos=_own(n.ideal_diode.pos),
            z_neg=_own(n.ideal_diode.neg),
            z_slot=self._slots(self._ideal_pairs),
            z_g=_own(t["ideal_diode"]["conductance"]),
            b_row=self._buffer_rows,
            b_cpos=_own(n.buffer.control_pos),
            b_cneg=_own(n.buffer.control_neg),
            b_slot=self._slots(self._buffer_pairs),
            b_gain=_own(b["gain"]),
            b_sat=_own(b["saturation"]),
            b_off=_own(b["offset"]),
            **self._behavioural.arrays(self._slots),
            s_ptr=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            s_pos=np.concatenate([nothing, *(pos for pos, _ in groups)]),
            s_neg=np.concatenate([nothing, *(neg for _, neg in groups)]),
            s_slot=np.concatenate([np.empty((0, 4), np.int64), *(self._slots(p) for p in load_pairs)]),
            s_slot_ptr=np.concatenate([[0], np.cumsum(np.square(lengths))]).astype(np.int64),
            s_amplitude=np.array(amplitude, dtype=np.float64),
            s_scale=np.array(scale, dtype=np.float64),
        )
        return circuit, self._tied.assemble(parameters), flat_values

    def storage(self, values: Values) -> tuple[FloatArray, FloatArray]:
        """Return S on the pattern, and the coefficients of the known voltages' rates of change."""
        parameters = storage_parameters(self.flat.netlist, self.flat.values(values).tables)
        return self._storage.assemble(parameters), self._tied_storage.assemble(parameters)

    def _targets(self, batch: int, nudge: Any) -> FloatArray:
        parts = [np.broadcast_to(load.target, (batch, len(load.target))) for load in self.flat.netlist.loads]
        if nudge is not None and nudge.kind == "softmax":
            parts.append(nudge.target)
        return np.ascontiguousarray(np.concatenate([np.empty((batch, 0)), *parts], axis=1))

    def _factors(self, circuit: Circuit, v: FloatArray) -> LUPlan:
        """Return the pivot plan, made at the first solve from the values there."""
        if self._lu is None:
            n = len(self.is_node)
            values = _dense_enough(circuit, v)
            analysis = analyse(n, self.indptr, self.indices, values)
            if analysis.status != OK:
                raise NetlistError(
                    f"the equations are singular at {self._unknown_name(analysis.column)}",
                    object=self.netlist.title,
                    remedy="Look for a node that nothing holds, or a loop of ideal amplifiers.",
                )
            self._lu = analysis.plan
        return self._lu

    def _unknown_name(self, column: int) -> str:
        n = self.flat.netlist
        if 0 <= column < len(self.free_nodes):
            return f"node {n.node_names[self.free_nodes[column]]}"
        k = column - len(self.free_nodes)
        return (
            f"branch {n.branch_names[self.free_branches[k]]}"
            if 0 <= k < len(self.free_branches)
            else "an unknown"
        )

    def _known_voltages(self, source: FloatArray) -> FloatArray:
        v = np.zeros((len(source), self.flat.netlist.n_nodes))
        v[:, self.fixed_nodes] = source[:, self._fixed_row] * self._fixed_sign
        return v

    def _constant(
        self, v: FloatArray, source: FloatArray, tied: FloatArray, values: Values, nudge: Any
    ) -> FloatArray:
        n = self.flat.netlist
        constant = np.zeros((len(v), len(self.is_node)))
        known = v[:, self.fixed_nodes]
        for b in range(len(v)):
            constant[b] = np.bincount(self._tied_row, tied * known[b, self._tied_col], len(self.is_node))
        branches = self.branch_unknown[: len(n.vsource)]
        kept = branches >= 0
        constant[:, branches[kept]] -= source[:, kept]

        def leave(pos: IntArray, neg: IntArray, current: FloatArray) -> None:
            for nodes, sign in ((pos, 1.0), (neg, -1.0)):
                rows = self.node_unknown[nodes]
                free = rows >= 0
                values = np.broadcast_to(current, (len(v), len(nodes)))
                accumulate(constant, rows[free], sign * values[:, free])

        if len(n.isource):
            leave(n.isource.pos, n.isource.neg, values.tables["isource"]["current"])
        if nudge is not None and nudge.kind == "quadratic":
            # The part of g * (v_pos - v_neg - target) that known voltages and targets give.
            ports, g = n.outputs, nudge.beta * nudge.conductance
            leave(ports.pos, ports.neg, g * (ports.read(v) - nudge.target))
        return constant

    def run(
        self, values: Values, drive: Drive, settings: SolverSettings, start: OperatingPoint | None
    ) -> GeneralResult:
        """Solve B samples; the caller checks the result."""
        n = self.flat.netlist
        source = self._source_voltage(values, drive.inputs)
        circuit, tied, flat_values = self._circuit(values, drive.nudge)
        v = self._known_voltages(source)
        constant = self._constant(v, source, tied, flat_values, drive.nudge)
        batch = len(source)
        x = np.zeros((batch, len(self.is_node)))
        begin = start if start is not None else drive.anchor
        if begin is None:
            # Sources to ground whose currents are sensed stay in the equations; their nodes are known.
            for nodes, others, sign in (
                (n.vsource.pos, n.vsource.neg, 1.0),
                (n.vsource.neg, n.vsource.pos, -1.0),
            ):
                held = (others == GROUND) & (self.node_unknown[nodes] >= 0)
                x[:, self.node_unknown[nodes[held]]] = sign * source[:, held]
        else:
            x[:] = self._unknowns(*self.lift(values, begin.node_voltage, begin.branch_current))
        x0 = v0 = np.empty((batch, 0))
        if drive.anchor is not None:
            v0, i0 = self.lift(values, drive.anchor.node_voltage, drive.anchor.branch_current)
            x0 = self._unknowns(v0, i0)
            v0 = np.ascontiguousarray(v0)
        factor = np.empty(0)
        if drive.correction is not None:
            factor = self._correction_factors(drive.correction)
            self._add_anchor_errors(values, drive.correction, v0, constant)
        lu = self._factors(circuit, v[0])
        limits = (settings.relative_tolerance, settings.absolute_tolerance, settings.voltage_tolerance)
        targets = self._targets(batch, drive.nudge)
        status, iterations = np.empty(batch, np.int8), np.empty(batch, np.int64)

        def rows(k: slice) -> None:
            newton_batch(
                circuit,
                lu,
                x[k],
                v[k],
                constant[k],
                x0[k],
                v0[k],
                factor,
                targets[k],
                0.0,
                limits,
                settings.max_iterations,
                status[k],
                iterations[k],
            )

        share_batch(rows, batch, work=len(self.indices))
        current = np.zeros((batch, len(n.branch_names)))
        current[:, self.free_branches] = x[:, len(self.free_nodes) :]
        return GeneralResult(
            node_voltage=np.ascontiguousarray(v[:, : self.netlist.n_nodes]),
            branch_current=current[:, self.flat.branch],
            iterations=iterations,
            status=status,
        )

    def _correction_factors(self, faults: Correction) -> FloatArray:
        """Return what multiplies J0^T - J0 on the pattern."""
        factor = np.ones(len(self.indices))

        def multiply(rows: IntArray, columns: IntArray, by: FloatArray | None) -> None:
            if by is not None:
                slots = self._slots(np.stack([rows, columns], axis=1))
                factor[slots[slots >= 0]] *= by[slots >= 0]

        for name, outer, rows in self._amplifiers():
            for row in rows:
                multiply(row, outer, faults.forward.get(name))
                multiply(outer, row, faults.back.get(name))
        for sense, row in self._grounds():
            outer = self.node_unknown[sense.output]
            multiply(outer, row, faults.forward.get(sense.name))
            multiply(row, outer, faults.back.get(sense.name))
        return factor

    def _add_anchor_errors(
        self, values: Values, faults: Correction, v0: FloatArray, constant: FloatArray
    ) -> None:
        """Add what errors of the anchor at v0 (B, N) add to the equations (B, n)."""

        def add(rows: IntArray, amount: FloatArray) -> None:
            some = rows >= 0
            accumulate(constant, rows[some], np.broadcast_to(amount, (len(v0), len(rows)))[:, some])

        for bank, (_, outer, rows) in zip(self.netlist.banks, self._amplifiers(), strict=True):
            p = values.banks[bank.name]
            slope = buffer_gain(v0[:, bank.control], p["gain"], p["saturation"], p["offset"])
            forward, back = (kind.get(bank.name, 1.0) for kind in (faults.forward, faults.back))
            swapped = slope - p["back_gain"]
            for row, sign in zip(rows[:: 1 if bank.one_way else 2], (1.0, -1.0), strict=False):
                add(row, -sign * forward * swapped * faults.anchor.get(bank.name, 0.0))
            add(outer, back * swapped * faults.anchor_current.get(bank.name, 0.0))
        for sense, row in self._grounds():
            gain = values.senses[sense.name]
            forward, back = (kind.get(sense.name, 1.0) for kind in (faults.forward, faults.back))
            outer = self.node_unknown[sense.output]
            add(outer, -forward * gain * faults.anchor_current.get(sense.name, 0.0))
            add(row, back * gain * faults.anchor.get(sense.name, 0.0))

    def _amplifiers(self) -> list[tuple[str, IntArray, list[IntArray]]]:
        """Return each bank's name, the unknowns of its controls, and the branches of its outputs.

        Of a two-way bank the amplifier's branch is followed by that of the source that senses its current.
        """
        found = []
        start, sensing = (
            self.netlist.branch_starts["blocks"],
            dict(zip(self.flat.sense_branch.tolist(), self.flat.sense_row.tolist(), strict=True)),
        )
        for bank in self.netlist.banks:
            rows = []
            for _ in range(1 if bank.out_neg is None else 2):
                branches = np.arange(start, start + len(bank.control))
                rows.append(self.branch_unknown[self.flat.branch[branches]])
                if not bank.one_way:
                    rows.append(self.branch_unknown[[sensing[k] for k in branches.tolist()]])
                start += len(bank.control)
            found.append((bank.name, self.node_unknown[bank.control], rows))
        return found

    def _grounds(self) -> list[tuple[CurrentSense, IntArray]]:
        """Return each virtual ground and the branches of its bit lines."""
        found, end = [], len(self.netlist.branch_names)
        for sense in reversed(self.netlist.senses):
            rows = self.branch_unknown[self.flat.branch[end - len(sense.bit) : end]]
            found.append((sense, rows))
            end -= len(sense.bit)
        return found[::-1]

    def transposed(self, values: Values, point: OperatingPoint, output_current: FloatArray) -> FloatArray:
        """Return ``s`` at the nodes (B, N), solving ``J0^T s = -output_current`` at the outputs.

        Known nodes have s = 0: nothing can move them.
        """
        n = self.flat.netlist
        circuit, _, _ = self._circuit(values, None)
        v, i = self.lift(values, point.node_voltage, point.branch_current)
        load = np.zeros((len(v), len(self.is_node)))
        for nodes, sign in ((n.outputs.pos, 1.0), (n.outputs.neg, -1.0)):
            rows = self.node_unknown[nodes]
            accumulate(load, rows[rows >= 0], sign * output_current[:, rows >= 0])
        lu = self._factors(circuit, v[0])
        v, targets, x = np.ascontiguousarray(v), self._targets(len(v), None), self._unknowns(v, i)
        s, status = np.empty_like(load), np.empty(len(v), np.int8)
        share_batch(
            lambda k: adjoint_batch(circuit, lu, v[k], x[k], targets[k], load[k], s[k], status[k]),
            len(v),
            work=len(self.indices),
        )
        if status.any():
            raise NetlistError(
                "the small-signal matrix is singular at the operating point", object=self.netlist.title
            )
        full = np.zeros((len(v), n.n_nodes))
        full[:, self.free_nodes] = s[:, : len(self.free_nodes)]
        return full[:, : self.netlist.n_nodes]

    def small_signal(
        self, values: Values, voltage: FloatArray, current: FloatArray | None = None
    ) -> FloatArray:
        """Return J (n, n) of one sample at block node voltages (N,), dense, over this plan's unknowns.

        Branch currents (M,) matter where behavioural sources sense them.
        """
        circuit, _, _ = self._circuit(values, None)
        i0 = np.zeros(len(self.netlist.branch_names)) if current is None else current
        v, i = self.lift(values, voltage[None], i0[None])
        x = self._unknowns(v, i)[0]
        entries = small_signal_values(circuit, v[0], x, self._targets(1, None)[0])
        return self.dense(entries)

    def dense(self, entries: FloatArray) -> FloatArray:
        """Return values on the pattern as a matrix (n, n)."""
        matrix = np.zeros((len(self.is_node), len(self.is_node)))
        matrix[self.indices, np.repeat(np.arange(len(matrix)), np.diff(self.indptr))] = entries
        return matrix

    def lift(self, values: Values, voltage: FloatArray, current: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return flat node voltages and branch currents for those of the block netlist (B, N), (B, M)."""
        return self.flat.lift(voltage, current, point_voltages(self.netlist, values, voltage))

    def _unknowns(self, v: FloatArray, i: FloatArray) -> FloatArray:
        return np.ascontiguousarray(np.concatenate([v[:, self.free_nodes], i[:, self.free_branches]], axis=1))

    def _source_voltage(self, values: Values, inputs: FloatArray) -> FloatArray:
        n = self.flat.netlist
        voltage = np.tile(self.flat.values(values).tables["vsource"]["voltage"], (len(inputs), 1))
        if len(n.inputs.source):
            voltage[:, n.inputs.source] = inputs[:, n.inputs.column] * n.inputs.gain
        return voltage


def _own(array: Any) -> Any:
    """Return a writable, contiguous array: kernels are compiled for one array type only."""
    return np.array(array)


def _dense_enough(circuit: Circuit, v: FloatArray) -> FloatArray:
    """Return values to plan pivots with: the linear part and typical values of everything else."""
    values = circuit.linear.copy()
    node = np.abs(values[circuit.diagonal])[circuit.is_node]
    # Times a number that no sum of conductances cancels by accident.
    typical = 0.7390851 * float(np.median(node[node > 0])) if np.any(node > 0) else 1e-6
    for sign, corners in ((1.0, (0, 3)), (-1.0, (1, 2))):
        for corner in corners:
            for table in (circuit.d_slot, circuit.z_slot):
                slots = table[:, corner]
                np.add.at(values, slots[slots >= 0], sign * typical)
    np.add.at(values, circuit.x_slot[circuit.x_slot >= 0], (typical * circuit.x_sign)[circuit.x_slot >= 0])
    for column, sign in ((0, -1.0), (1, 1.0)):
        slots = circuit.b_slot[:, column]
        np.add.at(values, slots[slots >= 0], (sign * circuit.b_gain)[slots >= 0])
    return values
