"""Boards that reach single devices of an array by word lines and bit lines, made into a `Substrate`.

Such a board reads and pulses devices and has no neurons: the devices are real, what lies between crossbars is
computed by the host. Each phase solves the designed circuit with the conductances that were measured, so
KCL holds for the devices as they are, not as they were asked to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, ParamSpec, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from circuitsim.chip import Conductances, WriteReport
from circuitsim.chip.substrate import (
    PHASES,
    Capabilities,
    ConverterLimits,
    CrossbarLimits,
    NudgeLimits,
    Phase,
    Terminals,
)
from circuitsim.errors import CircuitsimError, ConvergenceError, InstrumentError
from circuitsim.learning.cost import Cost
from circuitsim.learning.phases import Change, Phases
from circuitsim.netlist import Netlist, Nudge, Values
from circuitsim.netlist.tables import FloatArray, IntArray
from circuitsim.network import Quantity, Spec
from circuitsim.network.documents import Positive
from circuitsim.seeds import stream
from circuitsim.solver import OperatingPoint, SolverSettings, build_plan

__all__ = [
    "Block",
    "CrossbarPlatform",
    "Placement",
    "PlatformSpec",
    "PlatformSubstrate",
    "PulseSpec",
    "stacked_placement",
]

_HALVES = ("g_plus", "g_minus")
_MOST_READINGS = 10_000
_MOST_SAMPLES = 4096
_LARGEST_BETA = 100.0
_CALIBRATION_READS = 16
_SINGLY_READ = 32
"""Devices that a calibration reads one by one as well."""
_BITS = 52
"""Of a periphery that computes in double precision."""
_ROOM = 1000.0
"""Its range over the largest voltage of a source or an amplifier."""
_IDLE = 0.1
"""A device that moves by less than this part of its nominal step gets fewer pulses next time."""
_TRUST = 4.0
"""How far a device's observed step is believed to be from the nominal one, as a factor."""

Mask: TypeAlias = NDArray[np.bool_]
Asked = ParamSpec("Asked")
Result = TypeVar("Result")


class CrossbarPlatform(Protocol):
    """An array of two-terminal devices behind channels. What fails raises, best an `InstrumentError`.

    Lines go by channel number, as boards of this kind have them (ArC TWO: 64 channels). One line is *low*,
    and one or many that cross it are *high*: a slice reads or pulses the devices between them. SI units.
    """

    @property
    def words(self) -> IntArray:
        """Channels of the word lines (rows,), in the order of the array."""

    @property
    def bits(self) -> IntArray:
        """Channels of the bit lines (columns,)."""

    def read_one(self, low: int, high: int, vread: float) -> float:
        """Return the current [A] of one device at ``vread`` [V], positive into the low line."""

    def read_slice_masked(self, chan: int, mask: IntArray, vread: float) -> FloatArray:
        """Return the currents [A] between the low channel ``chan`` and each high channel of ``mask`` (k,)."""

    def pulse_slice_masked(self, chan: int, voltage: float, width: float, mask: IntArray) -> None:
        """Give one pulse of ``voltage`` [V] for ``width`` [s] to the devices between ``chan`` and ``mask``.

        Positive: their conductance rises. No other device moves.
        """


class PulseSpec(Spec):
    """A programming pulse: ``voltage`` [V, without its sign], ``width`` [s], and ``step``, what it nominally
    moves a device by [S]."""

    voltage: Positive
    width: Positive
    step: Positive


class PlatformSpec(Spec):
    """How a host uses the devices of a board.

    Devices are read at ``vread`` [V], ``averaging`` times; ``current_step`` is the board's resolution [A].
    ``reads``: ``written`` takes what was read after the last pulses, ``free`` reads all devices anew in each
    free phase, ``phase`` in every phase, which then differ by read noise.

    ``program`` reads devices and gives those off by more than ``tolerance`` (a fraction of the crossbar's
    window) pulses, for up to ``budget`` rounds. ``most`` pulses are given to a device at once.
    ``update`` rounds to whole pulses, ``stochastic`` (from ``seed``) or to the ``nearest``.
    """

    up: PulseSpec
    down: PulseSpec
    vread: Positive = 0.1
    averaging: Annotated[int, Field(ge=1, le=_MOST_READINGS, strict=True)] = 1
    current_step: Annotated[Quantity, Field(ge=0)] = 0.0
    reads: Literal["written", "free", "phase"] = "free"
    tolerance: Annotated[Quantity, Field(gt=0, lt=1)] = 0.02
    budget: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 20
    most: Annotated[int, Field(ge=1, le=100_000, strict=True)] = 1000
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Where one half of a crossbar lies: word lines ``rows`` (M,) and bit lines ``columns`` (N,), from 0."""

    rows: IntArray
    columns: IntArray


Placement: TypeAlias = Mapping[str, tuple[Block, Block | None]]
"""Crossbar name -> blocks of (g_plus, g_minus or None)."""


def stacked_placement(netlist: Netlist, rows: int, columns: int) -> Placement:
    """Return blocks side by side from the first line on, and further rows of blocks below them.

    Raises:
        InstrumentError: they do not fit.
    """
    found: dict[str, tuple[Block, Block | None]] = {}
    top, left, height, widest = 0, 0, 0, 0
    for crossbar in netlist.trainable:
        m, n = crossbar.shape
        halves: list[Block] = []
        for _ in range(2 if crossbar.differential else 1):
            if left and left + n > columns:
                top, left, height = top + height, 0, 0
            halves.append(Block(rows=np.arange(top, top + m), columns=np.arange(left, left + n)))
            left, height = left + n, max(height, m)
            widest = max(widest, left)
        found[crossbar.name] = halves[0], halves[1] if len(halves) > 1 else None
    if top + height > rows or widest > columns:
        raise InstrumentError(
            f"is too small: {netlist.title} needs {top + height} word lines and {widest} bit lines as its "
            "crossbars are stacked",
            object="platform",
            value=f"{rows} x {columns}",
            remedy="Use a larger array, a smaller network, or a placement of your own.",
        )
    return found


class _Lines:
    """The array of a platform, device by device: grids (rows, columns) in, grids out."""

    def __init__(self, platform: CrossbarPlatform, spec: PlatformSpec) -> None:
        self.platform = platform
        self.spec = spec
        self.words = np.asarray(platform.words, dtype=np.int64)
        self.bits = np.asarray(platform.bits, dtype=np.int64)
        self.shape = len(self.words), len(self.bits)
        self.open = True
        self.present = np.full(self.shape, np.nan)
        """Conductances as they were read last [S]; NaN of devices that have had pulses since."""
        self._step = np.empty((2, *self.shape))
        """What a pulse up, and one down, are believed to move each device by [S]."""
        self._step[0], self._step[1] = spec.up.step, spec.down.step
        self._most = np.full((2, *self.shape), spec.most)
        """How many of them it is given at once."""

    def read(self, where: Mask, times: int) -> None:
        """Read the conductances ``where``: the mean of ``times`` readings, which noise may make negative."""
        self.present = np.where(where, self.readings(where, times), self.present)

    def readings(self, where: Mask, times: int) -> FloatArray:
        """Return conductances [S] of the devices ``where``, NaN elsewhere. A bit line is read at once."""
        vread = self.spec.vread
        found = np.full(self.shape, np.nan)
        for column in np.flatnonzero(where.any(axis=0)):
            rows = np.flatnonzero(where[:, column])
            low, highs = int(self.bits[column]), self.words[rows]
            total = np.zeros(len(rows))
            for _ in range(times):
                currents = np.asarray(
                    self._asked(self.platform.read_slice_masked, low, highs, vread), dtype=np.float64
                )
                if currents.shape != rows.shape or not np.isfinite(currents).all():
                    rule = f"must return {len(rows)} currents"
                    value = currents.shape if currents.shape != rows.shape else currents
                    raise InstrumentError(rule, object=f"platform: bit line {column}", value=value)
                total += currents
            found[rows, column] = total / (times * vread)
        return found

    def read_one(self, row: int, column: int, times: int) -> float:
        """Return the conductance [S] of one device, read by itself."""
        low, high, vread = int(self.bits[column]), int(self.words[row]), self.spec.vread
        currents = [self._asked(self.platform.read_one, low, high, vread) for _ in range(times)]
        return math.fsum(currents) / (times * vread)

    def pulse(self, counts: NDArray[np.int64]) -> int:
        """Give each device its number of pulses, positive for up; return how many that were.

        A bit line's devices are pulsed at once, each as long as it is due.
        """
        self.present = np.where(counts != 0, np.nan, self.present)
        for column in np.flatnonzero(counts.any(axis=0)):
            low = int(self.bits[column])
            for sign, pulse in ((1, self.spec.up), (-1, self.spec.down)):
                due = sign * counts[:, column]
                for done in range(int(due.max())):
                    highs = self.words[np.flatnonzero(due > done)]
                    voltage, width = sign * pulse.voltage, pulse.width
                    self._asked(self.platform.pulse_slice_masked, low, voltage, width, highs)
        return int(np.abs(counts).sum())

    def write(self, target: FloatArray, allowed: FloatArray) -> WriteReport:
        """Bring devices within ``allowed`` [S] of ``target`` by pulses and reads; NaN leaves them alone."""
        spec = self.spec
        asked = ~np.isnan(target)
        self.read(asked, spec.averaging)
        pulses, energy = 0, 0.0
        for _ in range(spec.budget):
            before = self.present
            error = np.where(asked, target - before, 0.0)
            off = np.abs(error) > allowed
            if not off.any():
                break
            rises = error > 0
            step, most = np.where(rises, *self._step), np.where(rises, *self._most)
            # Even one pulse too many is better than none: it is seen, and can be taken back.
            size = np.clip(np.rint(np.abs(error) / step), 1, most).astype(np.int64)
            counts = np.where(off, np.where(rises, size, -size), 0)
            pulses += self.pulse(counts)
            energy += self._energy(counts, before)
            self.read(off, spec.averaging)
            self._learn(counts, before)
        missed = np.abs(np.where(asked, target - self.present, 0.0)) > allowed
        return WriteReport(writes=pulses, energy=energy, missed=int(missed.sum()))

    def _learn(self, counts: NDArray[np.int64], before: FloatArray) -> None:
        """Learn from what pulses did how far a pulse moves each device."""
        for way, (sign, pulse) in enumerate(((1, self.spec.up), (-1, self.spec.down))):
            due = sign * counts > 0
            size = np.where(due, np.abs(counts), 1)
            moved = np.where(due, sign * (self.present - before), 0.0) / size
            # One at the end of its range is tried again, but not worn out.
            idle = moved < _IDLE * pulse.step
            more = np.minimum(4 * np.maximum(size, self._most[way]), self.spec.most)
            most = np.where(idle, np.maximum(size // 4, 1), more)
            believed = np.clip(moved, pulse.step / _TRUST, pulse.step * _TRUST)
            self._most[way] = np.where(due, most, self._most[way])
            self._step[way] = np.where(due, 0.5 * (self._step[way] + believed), self._step[way])

    def _energy(self, counts: NDArray[np.int64], g: FloatArray) -> float:
        """Return about what pulses cost [J], each device at the conductance ``g`` that it had before them."""
        up, down = (pulse.voltage**2 * pulse.width for pulse in (self.spec.up, self.spec.down))
        each = np.where(counts > 0, up, down) * np.abs(counts)
        return float((each * np.maximum(np.nan_to_num(g), 0.0)).sum())

    def _asked(self, call: Callable[Asked, Result], *args: Asked.args, **kwargs: Asked.kwargs) -> Result:
        if not self.open:
            raise InstrumentError("has been closed", object="platform", remedy="Open it again.")
        try:
            return call(*args, **kwargs)
        except CircuitsimError:
            raise
        except Exception as error:  # a driver's own kinds are not known here
            raise InstrumentError(
                f"failed: {type(error).__name__}: {error}",
                object="platform",
                remedy="Look at its connection and power.",
            ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class _Anchor:
    """The free phase that other phases refer to, and the devices as they were read for it."""

    volts: FloatArray
    inputs: FloatArray
    point: OperatingPoint
    phases: Phases


class PlatformSubstrate:
    """A board's devices with neurons of the host's between them. Satisfies `Substrate`.

    ``program`` is write-verify; what it returns are conductances as they were read last, averaged, and
    never below 0. ``report`` says how many pulses it took, their energy [J] and how many devices missed their
    tolerance. ``relax`` solves all four phases with the devices as measured: current over ``vread``, so a
    device that is not ohmic is taken for its chord. ``n_average`` multiplies the readings of each device, and
    has no effect where ``reads`` is ``written``. ``update`` gives devices pulses by the sign and size of the
    local rule.
    """

    def __init__(
        self,
        platform: CrossbarPlatform,
        netlist: Netlist,
        cost: Cost,
        spec: PlatformSpec,
        *,
        placement: Placement | None = None,
        identity: str = "crossbar platform",
        settings: SolverSettings | None = None,
    ) -> None:
        self._spec = spec
        self._lines = _Lines(platform, spec)
        self._netlist = netlist
        self._plan = build_plan(netlist)
        self._cost = cost
        self._settings = settings or SolverSettings(check=False)
        self._placement = stacked_placement(netlist, *self._lines.shape) if placement is None else placement
        self._used = self._checked_placement()
        self._updates = 0
        self._anchor: _Anchor | None = None
        self._changes: list[tuple[Phase, float, Change]] = []
        self.report = WriteReport()
        """Of the last `program`."""
        self.terminals = Terminals.of(netlist)
        self.capabilities = self._described(identity)

    def _checked_placement(self) -> Mask:
        """Return which devices of the array are in use (rows, columns).

        Raises:
            InstrumentError: a crossbar without a place, outside the array or on top of another, or without
                a window of conductances.
        """
        taken: dict[tuple[int, int], str] = {}
        used = np.zeros(self._lines.shape, dtype=bool)
        names = {crossbar.name for crossbar in self._netlist.trainable}
        for name in self._placement.keys() ^ names:
            rule = "has no place" if name in names else "is no crossbar that can be written"
            raise InstrumentError(rule, object="placement", value=name)
        for crossbar in self._netlist.trainable:
            if not math.isfinite(crossbar.g_max):
                remedy = "Give the crossbar g_min and g_max."
                raise InstrumentError(
                    "devices need a conductance window",
                    object=crossbar.name,
                    field="g_max",
                    value=crossbar.g_max,
                    remedy=remedy,
                )
            blocks = self._placement[crossbar.name]
            if (blocks[1] is not None) != crossbar.differential:
                rule = "is made of pairs" if crossbar.differential else "has one device per crossing"
                raise InstrumentError(rule, object=f"placement: {crossbar.name}", field="g_minus")
            mask = np.ones(crossbar.shape, bool) if crossbar.mask is None else crossbar.mask
            for half, block in zip(_HALVES, blocks, strict=True):
                if block is None:
                    continue
                where = f"placement: {crossbar.name}"
                if (len(block.rows), len(block.columns)) != crossbar.shape:
                    size = (len(block.rows), len(block.columns))
                    raise InstrumentError(f"must be {crossbar.shape}", object=where, field=half, value=size)
                for what, lines, count in zip(
                    ("rows", "columns"), (block.rows, block.columns), self._lines.shape, strict=True
                ):
                    bad = (lines < 0) | (lines >= count)
                    if bad.any():
                        rule = f"the platform's {what} are 0 to {count - 1}"
                        value = int(lines[bad][0])
                        raise InstrumentError(rule, object=where, field=f"{half}.{what}", value=value)
                for i, j in np.argwhere(mask):
                    cell = int(block.rows[i]), int(block.columns[j])
                    if cell in taken:
                        rule = f"lies on top of {taken[cell]}"
                        raise InstrumentError(rule, object=where, field=half, value=cell)
                    taken[cell] = f"{crossbar.name} {half}"
                used[np.ix_(block.rows, block.columns)] |= mask
        return used

    def _described(self, identity: str) -> Capabilities:
        netlist, cost, spec = self._netlist, self._cost, self._spec
        port = netlist.inputs
        largest = float(np.abs(port.gain).max(initial=0.0)) or 1.0
        largest = max(largest, float(np.abs(netlist.vsource.voltage).max(initial=0.0)))
        periphery = ConverterLimits(bits=_BITS, low=-_ROOM * largest, high=_ROOM * largest)
        return Capabilities(
            identity=identity,
            circuit=netlist.title,
            inputs=port.size,
            outputs=len(netlist.outputs.pos),
            readings=self.terminals.names,
            crossbars=tuple(
                CrossbarLimits(
                    name=crossbar.name,
                    shape=crossbar.shape,
                    differential=crossbar.differential,
                    low=crossbar.g_min,
                    high=crossbar.g_max,
                )
                for crossbar in netlist.trainable
            ),
            dac=periphery,
            adc=periphery,
            largest_gain=1,
            nudge=NudgeLimits(
                kind=cost.kind, conductance=cost.conductance, scale=cost.scale, largest_beta=_LARGEST_BETA
            ),
            phases=PHASES,
            settling_time=math.nan,
            most_readings=max(1, _MOST_READINGS // spec.averaging),
            most_samples=_MOST_SAMPLES,
            updates_itself=True,
            resolution=spec.current_step / spec.vread,
        )

    @property
    def measured(self) -> Conductances:
        """Conductances as they were read last; what has not been read since its pulses is read now."""
        stale = self._used & np.isnan(self._lines.present)
        if stale.any():
            self._lines.read(stale, self._spec.averaging)
        return self._gathered(self._netlist.trainable)

    def _gathered(self, crossbars: Any) -> dict[str, tuple[FloatArray, FloatArray | None]]:
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for crossbar in crossbars:
            halves: list[FloatArray | None] = []
            for block in self._placement[crossbar.name]:
                if block is None:
                    halves.append(None)
                    continue
                g = np.maximum(self._lines.present[np.ix_(block.rows, block.columns)], 0.0)
                halves.append(g if crossbar.mask is None else np.where(crossbar.mask, g, 0.0))
            assert halves[0] is not None
            found[crossbar.name] = halves[0], halves[1]
        return found

    def _laid_out(self, pairs: Mapping[str, tuple[Any, Any]], grid: NDArray[Any]) -> NDArray[Any]:
        """Put arrays (M, N) of crossbars, or single values, where their devices lie in the grid."""
        for name, pair in pairs.items():
            mask = self._netlist.crossbar(name).mask
            for block, values in zip(self._placement[name], pair, strict=True):
                if block is None or values is None:
                    continue
                place = np.ix_(block.rows, block.columns)
                grid[place] = values if mask is None else np.where(mask, values, grid[place])
        return grid

    def program(self, conductance: Conductances) -> Conductances:
        """Write crossbars by pulses until each device reads within tolerance; return what was read.

        A device that will not come, because it is stuck or its range ends before, is left after ``budget``
        rounds and counted in ``report.missed``.
        """
        self.capabilities.check_program(conductance)
        crossbars = {crossbar.name: crossbar for crossbar in self._netlist.trainable}
        target = self._laid_out(conductance, np.full(self._lines.shape, np.nan))
        window = {name: (crossbars[name].g_max - crossbars[name].g_min,) * 2 for name in conductance}
        allowed = self._spec.tolerance * self._laid_out(window, np.zeros(self._lines.shape))
        self._anchor, self._changes = None, []
        self.report = self._lines.write(target, allowed)
        return self._gathered(crossbars[name] for name in conductance)

    def relax(
        self, inputs: FloatArray, phase: Phase, nudge: Nudge | None = None, n_average: int = 1
    ) -> FloatArray:
        """Put samples through a phase of the circuit that the measured devices make (B, R) V."""
        volts = np.array(inputs, dtype=np.float64)
        self.capabilities.check_relax(volts, phase, nudge, n_average)
        try:
            if nudge is None:
                return self._free(volts, n_average)
            return self._moved(volts, phase, nudge, n_average)
        except ConvergenceError as error:
            raise InstrumentError(
                f"did not settle: {error.rule}",
                object=f"phase {phase}",
                remedy="Lower beta, or the conductances of what feeds back.",
            ) from error

    def _phases(self, n_average: int, *, anew: bool) -> Phases:
        if anew:
            self._lines.read(self._used, self._spec.averaging * n_average)
        values = self._netlist.values()
        crossbars = {**values.crossbars, **self.measured}
        present: Values = replace(values, crossbars=crossbars)
        return Phases(plan=self._plan, values=present, cost=self._cost, settings=self._settings)

    def _free(self, volts: FloatArray, n_average: int) -> FloatArray:
        self._anchor, self._changes = None, []
        phases = self._phases(n_average, anew=self._spec.reads != "written")
        inputs = self.capabilities.dac.rounded(volts) / self.terminals.gain
        point = phases.free(inputs)
        self._anchor = _Anchor(volts=volts, inputs=inputs, point=point, phases=phases)
        return point.node_voltage[:, self.terminals.read]

    def _moved(self, volts: FloatArray, phase: Phase, nudge: Nudge, n_average: int) -> FloatArray:
        anchor = self._anchor
        if anchor is None or not np.array_equal(anchor.volts, volts):
            what = "conductances" if anchor is None else "inputs"
            raise InstrumentError(
                f"has no free phase of these {what} to refer to",
                object=f"phase {phase}",
                remedy="Relax the free phase first, then every other phase of the same inputs.",
            )
        phases, free = anchor.phases, anchor.point
        if self._spec.reads == "phase":
            phases = self._phases(n_average, anew=True)
        if phase == "dyadic":
            change = phases.dyadic(anchor.inputs, nudge.target, nudge.beta, free)
        else:
            # To first order the other side is the mirror image.
            guess = next((-d for p, beta, d in self._changes if p == phase and beta == -nudge.beta), None)
            form = phases.nudged if phase == "nudged" else phases.corrected
            change = form(anchor.inputs, nudge.target, nudge.beta, free, guess)
        self._changes.append((phase, nudge.beta, change))
        return phases.nodes(change, anchor.inputs, free)[:, self.terminals.read]

    def update(self, rates: Mapping[str, float]) -> int:
        """Give devices as many pulses as nominally make up the local rule's step; return how many.

        No device is sent beyond its crossbar's window.
        """
        anchor = self._anchor
        if anchor is None or not self._changes:
            raise InstrumentError(
                "needs a free phase, and one or two others of the same inputs",
                object="update",
                remedy="Relax them, then update.",
            )
        known = {crossbar.name: crossbar for crossbar in self._netlist.trainable}
        self.capabilities.check_update(rates)
        gradient = anchor.phases.rule(anchor.inputs, anchor.point, self._slope())
        present = anchor.phases.values.crossbars
        counts: dict[str, tuple[Any, Any]] = {}
        for name, rate in rates.items():
            halves: list[Any] = []
            for half, g, slope in zip(_HALVES, present[name], gradient[name], strict=True):
                if g is None or slope is None:
                    halves.append(None)
                    continue
                low, high = known[name].g_min, known[name].g_max
                asked = np.clip(g - rate * slope, low, high) - g
                halves.append(self._rounded(asked, name, half))
            counts[name] = halves[0], halves[1]
        grid = self._laid_out(counts, np.zeros(self._lines.shape, dtype=np.int64))
        self._updates += 1
        self._anchor, self._changes = None, []
        return self._lines.pulse(grid)

    def _rounded(self, asked: FloatArray, name: str, half: str) -> NDArray[np.int64]:
        """Return whole pulses for changes ``asked`` [S]."""
        spec = self._spec
        count = asked / np.where(asked > 0, spec.up.step, spec.down.step)
        if spec.rounding == "stochastic":
            draw = stream(spec.seed, "rounding", name, half, self._updates).random(asked.shape)
            count = np.floor(count + draw)
        return np.clip(np.rint(count), -spec.most, spec.most).astype(np.int64)

    def _slope(self) -> Change:
        """Return the change per unit of beta: centred, where the last two phases are of opposite betas."""
        phase, beta, change = self._changes[-1]
        if len(self._changes) > 1:
            other, opposite, before = self._changes[-2]
            if other == phase and opposite == -beta:
                return (change - before) / (2 * beta)
        return change / beta

    def calibrate(self) -> Mapping[str, float]:
        """Read devices many times; none is pulsed.

        Return ``read_noise``, the spread of one reading [S, rms over the devices], and ``slice_offset``, by
        how much devices read with others of their line differ from themselves read alone [S, mean].
        """
        reads = np.array([self._lines.readings(self._used, 1)[self._used] for _ in range(_CALIBRATION_READS)])
        cells = np.argwhere(self._used)
        some = np.unique(np.linspace(0, len(cells) - 1, min(_SINGLY_READ, len(cells))).astype(int))
        alone = [self._lines.read_one(int(i), int(j), _CALIBRATION_READS) for i, j in cells[some]]
        return {
            "read_noise": float(np.sqrt(reads.var(axis=0, ddof=1).mean())),
            "slice_offset": float(np.mean(reads.mean(axis=0)[some] - np.array(alone))),
        }

    def close(self) -> None:
        """Let go of the platform: nothing is asked of it any more."""
        self._lines.open = False
        self._anchor, self._changes = None, []
