"""What goes into a solve and what comes out: Drive, SolverSettings, OperatingPoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsim.errors import SpecError
from circuitsim.netlist import Netlist, Nudge, Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.solver.correction import Correction

if TYPE_CHECKING:
    from circuitsim.solver.layered import FreePoint

__all__ = ["STATUS", "Drive", "OperatingPoint", "SolverSettings"]

STATUS = (
    "converged",
    "the iterations ran out before the residual met the tolerance: raise max_iterations, lower beta, "
    "or start from a nearby point",
    "the small-signal matrix is singular: look for a floating node or a loop of ideal amplifiers",
    "the voltages grew without bound: the circuit has no operating point nearby; lower gains or beta",
    "the nudge is a negative conductance that outweighs what loads an output: lower beta, or the "
    "conductance of the cost",
)
"""What each status code means, and what to try."""


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How to solve. The answer does not depend on it, beyond the tolerances.

    Iterations end when the largest KCL residual is below ``relative_tolerance`` times the largest sum of
    the currents ``|g v|`` at a node plus ``absolute_tolerance`` [A], and the last step moved no voltage by
    more than ``voltage_tolerance`` [V]. With ``check`` a point whose residual then exceeds 1e-9 of the
    largest branch current, beyond rounding, is not called converged.
    """

    method: Literal["auto", "general", "layered", "wired"] = "auto"
    precision: Literal["float64", "float32"] = "float64"
    relative_tolerance: float = 1e-11
    absolute_tolerance: float = 1e-18
    voltage_tolerance: float = 1e-10
    max_iterations: int = 200
    check: bool = True
    """Compute the KCL residual, the branch currents and the power by the independent check."""
    throw: bool = True
    """Raise ConvergenceError where a sample does not converge; otherwise its status tells."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OperatingPoint:
    """DC steady state of B samples. ``status`` 0 is converged; see `STATUS`."""

    node_voltage: FloatArray
    """(B, N) V, ground included."""
    branch_current: FloatArray
    """(B, M) A, in the order of ``Netlist.branch_names``; empty if the check was left out."""
    kcl_residual: FloatArray
    """(B,) A, the largest over all nodes; NaN if the check was left out."""
    largest_current: FloatArray
    """(B,) A, the largest current of any element."""
    power: FloatArray
    """(B,) W, dissipated in resistances and diodes."""
    iterations: IntArray
    """(B,) Newton steps or sweeps."""
    status: NDArray[np.int8]
    """(B,)"""
    method: str
    displacement: FloatArray | None = None
    """(B, N) V from the anchor, or from the point a nudged phase started at, where a phase was solved for
    it rather than for voltages; free of cancellation."""
    # What a solver found this point as the free phase of; a changed copy does not carry it.
    _free_of: tuple[Values, FloatArray] | None = field(default=None, init=False, repr=False)
    # The layered method's own form of the point, from which node voltages are written out when asked for.
    _layers: FreePoint | None = field(default=None, init=False, repr=False)
    _write: Callable[[], FloatArray] | None = field(default=None, init=False, repr=False)

    @classmethod
    def of_layers(cls, layers: FreePoint, write: Callable[[], FloatArray]) -> OperatingPoint:
        """Return an unchecked free point that ``write`` turns into node voltages when they are asked for."""
        unknown = np.full(len(layers.status), np.nan)
        point = cls(
            node_voltage=np.empty((0, 0)),
            branch_current=np.empty((len(unknown), 0)),
            kcl_residual=unknown,
            largest_current=unknown,
            power=unknown,
            iterations=layers.iterations,
            status=layers.status,
            method="layered",
        )
        object.__delattr__(point, "node_voltage")
        object.__setattr__(point, "_layers", layers)
        object.__setattr__(point, "_write", write)
        return point

    def __getattr__(self, name: str) -> Any:
        write = self.__dict__.get("_write")
        if name == "node_voltage" and write is not None:
            voltage = write()
            voltage.flags.writeable = False
            object.__setattr__(self, "node_voltage", voltage)
            return voltage
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def is_free_of(self, values: Values, inputs: FloatArray) -> bool:
        """Whether a solver returned this very point as the free phase of these values and inputs."""
        found = self._free_of
        return (
            found is not None
            and found[0] is values
            and (found[1] is inputs or np.array_equal(found[1], inputs))
        )

    @property
    def relative_residual(self) -> FloatArray:
        """(B,) KCL residual over the largest branch current."""
        return self.kcl_residual / np.maximum(self.largest_current, 1e-300)

    @property
    def converged(self) -> bool:
        return not np.any(self.status)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drive:
    """Excitation of B samples.

    Without ``anchor``: ``F(x) + nudge = 0``. With it: ``F(x) + (J0^T - J0)(x - x0) + nudge = 0``, x0
    being the anchor (the corrected phase of arXiv:2602.03670). ``correction`` says what is wrong with the
    amplifiers that put that term there; None is perfect.
    """

    inputs: FloatArray
    """(B, n_in): what the input ports are driven with."""
    nudge: Nudge | None = None
    anchor: OperatingPoint | None = None
    correction: Correction | None = None

    @classmethod
    def of(cls, netlist: Netlist, inputs: ArrayLike, nudge: Nudge | None = None) -> Drive:
        """Check input vectors (B, n_in), or one of them (n_in,), against a netlist's ports.

        Raises:
            SpecError: wrong length, or values that are not finite.
        """
        u = np.asarray(inputs, dtype=np.float64)
        if u.ndim == 1:
            u = u[None]
        expected = netlist.inputs.size
        if u.ndim != 2 or u.shape[1] != expected:
            raise SpecError(
                f"an input vector of this network has {expected} values", field="inputs", value=u.shape
            )
        finite = np.isfinite(u)
        if not finite.all():
            b, k = (int(x) for x in np.argwhere(~finite)[0])
            raise SpecError("must be finite", field=f"inputs[{b}, {k}]", value=float(u[b, k]))
        return cls(inputs=u, nudge=nudge)

    def with_nudge(self, nudge: Nudge | None) -> Drive:
        return replace(self, nudge=nudge)

    def corrected(self, anchor: OperatingPoint, correction: Correction | None = None) -> Drive:
        return replace(self, anchor=anchor, correction=correction)
