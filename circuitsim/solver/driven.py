"""A circuit some of whose sources move: the same equations at many values of those sources.

R moments or points, W moving sources (voltage sources first), N nodes, M branches, n unknowns of the
general plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from circuitsim.errors import NetlistError
from circuitsim.netlist import GROUND, InputPort, Values
from circuitsim.netlist.tables import FloatArray
from circuitsim.solver.equations import Equations, accumulate
from circuitsim.solver.point import Drive
from circuitsim.solver.solve import Plan, build_plan

__all__ = ["DrivenCircuit", "Stored"]

_ROUNDING = 16 * np.finfo(np.float64).eps


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Currents (R, elements) A of capacitors and junctions, and the part of them that may be rounding."""

    capacitor: FloatArray
    capacitor_noise: FloatArray
    diode: FloatArray
    diode_noise: FloatArray


class DrivenCircuit:
    """A plan and values with the sources ``names`` free to move, ports included; the rest stays.

    Raises:
        NetlistError: a name that is no voltage or current source.
    """

    def __init__(self, plan: Plan, values: Values, names: Iterable[str], inputs: ArrayLike | None) -> None:
        chosen = list(names)
        n = plan.netlist
        voltage = {name: row for row, name in enumerate(n.vsource.name)}
        current = {name: row for row, name in enumerate(n.isource.name)}
        for name in chosen:
            if name not in voltage and name not in current:
                raise NetlistError("no voltage or current source of this name", object=n.title, value=name)
        u = np.zeros(n.inputs.size) if inputs is None else np.asarray(inputs, dtype=np.float64)
        drive = Drive.of(n, u).inputs[:1]
        if {n.vsource.name[row] for row in n.inputs.source} & set(chosen):
            # A source cannot follow two masters: the ports become plain sources.
            tables = {kind: dict(columns) for kind, columns in values.tables.items()}
            tables["vsource"]["voltage"] = n.source_voltage(drive)[0]
            plan, values = build_plan(replace(n, inputs=InputPort.none())), replace(values, tables=tables)
            drive = np.empty((1, 0))
        self.plan, self.values, self.inputs = plan, values, drive
        self.netlist, self.general = plan.netlist, plan.general
        self.names = [name for name in chosen if name in voltage]
        self.names += [name for name in chosen if name not in voltage]
        rows = [voltage[name] for name in chosen if name in voltage]
        self.voltage_rows = np.array(rows, dtype=np.int64)
        self.current_rows = np.array([current[name] for name in self.names[len(rows) :]], dtype=np.int64)

    def values_at(self, w: FloatArray) -> Values:
        """Return all values with moving sources at w (W,), or w (R, W) as columns of shape (R, sources)."""
        tables = {kind: dict(columns) for kind, columns in self.values.tables.items()}
        count = len(self.voltage_rows)
        for kind, column, rows, part in (
            ("vsource", "voltage", self.voltage_rows, w[..., :count]),
            ("isource", "current", self.current_rows, w[..., count:]),
        ):
            old = tables[kind][column]
            new = np.array(np.broadcast_to(old, (*w.shape[:-1], len(old))))
            new[..., rows] = part
            tables[kind][column] = new
        return replace(self.values, tables=tables)

    def source_voltage(self, w: FloatArray) -> FloatArray:
        """Return the voltages of the flat netlist's sources (R, sources) for w (R, W)."""
        source = np.repeat(self.general._source_voltage(self.values, self.inputs), len(w), axis=0)
        source[:, self.voltage_rows] = w[:, : len(self.voltage_rows)]
        return source

    def expand(self, x: FloatArray, w: FloatArray, *, flat: bool = False) -> tuple[FloatArray, FloatArray]:
        """Return node voltages (R, N) and branch currents (R, M) for unknowns x (R, n) and w (R, W).

        Currents of sources that left the equations are 0; `balance` fills them in. With ``flat``, of the
        flat netlist.
        """
        general = self.general
        v = general._known_voltages(self.source_voltage(w))
        v[:, general.free_nodes] = x[:, : len(general.free_nodes)]
        i = np.zeros((len(x), len(general.flat.netlist.branch_names)))
        i[:, general.free_branches] = x[:, len(general.free_nodes) :]
        if flat:
            return v, i
        return np.ascontiguousarray(v[:, : self.netlist.n_nodes]), i[:, general.flat.branch]

    def balance(
        self,
        v: FloatArray,
        i: FloatArray,
        w: FloatArray,
        *,
        time: FloatArray | None = None,
        stored: Stored | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Complete branch currents (R, M) in place; return KCL residuals and largest currents, (R,) A.

        By the elements' own equations, which no solver uses. Charges change as ``stored`` says; ``time``
        (R,) s is what behavioural sources see. Rounding is taken off the residuals.
        """
        n, general = self.netlist, self.general
        equations = Equations(netlist=n, values=self.values_at(w))
        source = self.source_voltage(w)[:, : len(n.vsource)]
        moments: float | FloatArray = 0.0 if time is None else time[:, None]
        node, _, largest = equations.residual(v, i, source, moments)
        rounding: FloatArray = _ROUNDING * equations.rounding(v)[:, None]
        if stored is not None:
            rounding = rounding + np.zeros_like(node)
            for table, rate, noise in (
                (n.capacitor, stored.capacitor, stored.capacitor_noise),
                (n.diode, stored.diode, stored.diode_noise),
            ):
                for nodes, leaving in ((table.pos, rate), (table.neg, -rate)):
                    accumulate(node, nodes, leaving)
                    accumulate(rounding, nodes, noise)
                largest = np.maximum(largest, np.abs(rate).max(axis=1, initial=0.0))
        node[:, GROUND] = 0.0
        held = general.fixed_nodes
        rows = general.fixing_source[held]
        sign = np.where(n.vsource.pos[rows] == held, 1.0, -1.0)
        i[:, rows] = -sign * node[:, held]
        node[:, held] = 0.0
        return np.maximum(np.abs(node) - rounding, 0.0).max(axis=1, initial=0.0), largest
