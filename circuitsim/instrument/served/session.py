"""A served die, and what each of its clients has set for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np

from circuitsim.chip.substrate import AgeingSubstrate, Phase, StatefulSubstrate, Substrate
from circuitsim.errors import CircuitsimError
from circuitsim.instrument.served.scpi import ErrorQueue, ScpiError, StatusRegisters
from circuitsim.instrument.served.state_file import SavedDie, Snapshot, StateFile
from circuitsim.netlist import Nudge
from circuitsim.netlist.tables import FloatArray

__all__ = ["REGISTERS", "Half", "ServedDie", "ServedSubstrate", "Session"]

REGISTERS = 10
"""Of `*SAV` and `*RCL`: 0 to 9."""

Half: TypeAlias = Literal["PLUS", "MIN"]
_HALVES: tuple[Half, Half] = ("PLUS", "MIN")


class ServedSubstrate(Substrate, StatefulSubstrate, AgeingSubstrate, Protocol):
    """What can be served: a substrate whose state can be kept, and that counts what it was asked."""

    presentations: int


@dataclass(eq=False)
class Session:
    """What one client has set, staged and read. Nothing of it outlives its connection."""

    die: ServedDie
    name: str
    """Where it comes from, as address:port."""
    errors: ErrorQueue = field(default_factory=ErrorQueue)
    status: StatusRegisters = field(default_factory=StatusRegisters)
    big_endian: bool = False
    inputs: FloatArray | None = None
    """(B, n_in) V."""
    target: FloatArray | None = None
    """(B, K): V, or probabilities."""
    beta: float | None = None
    average: int = 1
    staged: dict[tuple[str, Half], FloatArray] = field(default_factory=dict)
    readings: FloatArray | None = None
    pulses: int = 0
    """That the last update took."""
    answering: bool = False
    """Whether the message that is being done has a response already."""
    ended: bool = False
    """Whether its connection is gone."""

    def reset(self) -> None:
        """Bring every setting back to what it is at the start; registers and errors stay."""
        self.big_endian = False
        self.inputs = self.target = self.beta = self.readings = None
        self.average = 1
        self.staged.clear()
        self.pulses = 0

    def refused(self, error: ScpiError) -> None:
        """Note an error."""
        self.status.note(error.number)
        self.errors.push(error)

    def nudge(self, phase: Phase) -> Nudge | None:
        """Return the nudge that a phase goes with."""
        if phase == "free":
            return None
        if self.target is None:
            raise ScpiError(-221, "no target: send NUDGe:TARGet first")
        if self.beta is None:
            raise ScpiError(-221, "no beta: send NUDGe:BETA first")
        own = self.die.substrate.capabilities.nudge
        return Nudge(
            kind=own.kind,
            beta=self.beta,
            conductance=own.conductance,
            target=self.target,
            scale=own.scale,
        )


@dataclass(eq=False)
class ServedDie:
    """One die with its registers, its lock and its file. Its methods are called by one thread at a time."""

    substrate: ServedSubstrate
    circuit: str = ""
    """The network description, which is public; empty where there is none."""
    state_file: StateFile | None = None
    owner: Session | None = None
    """Who has the lock."""
    registers: dict[int, Snapshot] = field(default_factory=dict)
    achieved: dict[tuple[str, Half], FloatArray] = field(default_factory=dict)
    """What was read back of each half of a crossbar when it was last written [S]."""
    changes: int = 0
    """Commands so far that may have changed what the state file keeps."""
    _saved: int = 0
    """What ``changes`` was when that file was last written."""
    _anchored: Session | None = None
    """Whose free phase the die holds."""
    _anchor: FloatArray | None = None
    """Inputs of that phase."""
    _moved: bool = False
    """Whether another phase has followed it."""
    _lost: str = "there has been no free phase yet"
    """Why there is none."""

    def resume(self) -> bool:
        """Go on from the state file, or begin one. Return whether there was one.

        Raises:
            InstrumentError: it is another die's, or no state file.
            OSError: it cannot be written.
        """
        if self.state_file is None:
            return False
        saved = self.state_file.read()
        if saved is None:
            self.save()
            return False
        self.registers = dict(saved.registers)
        self._restore(saved.present)
        return True

    def save(self) -> None:
        """Write the state file.

        Raises:
            OSError: it cannot be written.
        """
        assert self.state_file is not None
        changes = self.changes
        self.state_file.write(SavedDie(present=self._snapshot(), registers=self.registers))
        self._saved = changes

    @property
    def unsaved(self) -> bool:
        """Whether the state file is behind."""
        return self.state_file is not None and self.changes != self._saved

    def relax(self, session: Session, phase: Phase) -> FloatArray:
        """Go through a phase with a session's settings and return its readings (B, R) V."""
        inputs = session.inputs
        if inputs is None:
            raise ScpiError(-221, "no inputs: send INPut:VOLTage first")
        nudge = session.nudge(phase)
        with _refusing(-222):
            self.substrate.capabilities.check_relax(inputs, phase, nudge, session.average)
        if phase == "free":
            self._lose("the last free phase failed")
        else:
            self._check_anchor(session)
            if self._anchor is None or not np.array_equal(inputs, self._anchor):
                raise ScpiError(-230, "stale; the last free phase had other inputs")
        self.changes += 1
        with _refusing(-200):
            readings = self.substrate.relax(inputs, phase, nudge, session.average)
        if phase == "free":
            self._anchored, self._anchor, self._moved = session, inputs, False
        else:
            self._moved = True
        session.readings = readings
        return readings

    def program(self, session: Session) -> None:
        """Write what a session has staged, in one operation."""
        if not session.staged:
            raise ScpiError(-221, "nothing is staged: send CONDuctance:WRITe first")
        wanted: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        differential = {c.name: c.differential for c in self.substrate.capabilities.crossbars}
        for name in dict.fromkeys(name for name, _ in session.staged):
            plus, minus = (session.staged.get((name, half)) for half in _HALVES)
            if plus is None or (minus is None and differential[name]):
                missing = "PLUS" if plus is None else "MINus"
                raise ScpiError(-221, f"{name}: {missing} is not staged, and it is made of pairs")
            wanted[name] = plus, minus
        with _refusing(-222):
            self.substrate.capabilities.check_program(wanted)
        self._lose(f"{session.name} has programmed the die since")
        self.changes += 1
        with _refusing(-200):
            found = self.substrate.program(wanted)
        for name, pair in found.items():
            for half, g in zip(_HALVES, pair, strict=True):
                if g is not None:
                    self.achieved[name, half] = g
        session.staged.clear()

    def update(self, session: Session, rates: dict[str, float]) -> None:
        """Let the devices learn from a session's phases."""
        self._check_anchor(session)
        if not self._moved:
            raise ScpiError(-221, "no phase has followed the free one: INITiate NUDGed, for one, first")
        self._lose(f"{session.name} has updated the die since")
        self.changes += 1
        with _refusing(-200):
            session.pulses = self.substrate.update(rates)

    def calibrate(self, session: Session) -> dict[str, float]:
        """Let the die calibrate itself."""
        self.changes += 1
        with _refusing(-200):
            return dict(self.substrate.calibrate())

    def wait(self, session: Session, seconds: float) -> None:
        """Let time pass."""
        self._lose(f"{session.name} has let time pass since")
        self.changes += 1
        with _refusing(-222):
            self.substrate.wait(seconds)

    def test(self, session: Session) -> bool:
        """Return whether a free phase of inputs in the middle of their range reads voltages in range."""
        substrate = self.substrate
        limits = substrate.capabilities
        before = _copied(substrate.state())
        self._lose(f"{session.name} has tested the die since")
        try:
            middle = 0.5 * (limits.dac.low + limits.dac.high)
            readings = substrate.relax(np.full((1, limits.inputs), middle), "free")
        except CircuitsimError:
            return False
        finally:
            # A test is no presentation: noise goes on as if there had been none.
            substrate.restore(before)
        slack = 0.5 * limits.adc.step
        inside = (readings >= limits.adc.low - slack) & (readings <= limits.adc.high + slack)
        return readings.shape == (1, len(limits.readings)) and bool(inside.all())

    def warm_up(self) -> None:
        """Go through every phase once, so that what has to be compiled or planned is; leave no trace."""
        substrate = self.substrate
        limits = substrate.capabilities
        own = limits.nudge
        nudge = Nudge(
            kind=own.kind,
            beta=min(0.01, own.largest_beta),
            conductance=own.conductance,
            target=np.zeros((1, limits.outputs)),
            scale=own.scale,
        )
        before = _copied(substrate.state())
        inputs = np.full((1, limits.inputs), 0.5 * (limits.dac.low + limits.dac.high))
        try:
            for phase in limits.phases:
                # A circuit that does not settle there says so to whoever asks for it.
                with suppress(CircuitsimError):
                    substrate.relax(inputs, phase, None if phase == "free" else nudge)
        finally:
            substrate.restore(before)

    def keep(self, register: int) -> None:
        """Keep the present state in a register, and on disk where there is a state file."""
        before = self.registers.get(register)
        self.registers[register] = self._snapshot()
        self.changes += 1
        if self.state_file is None:
            return
        try:
            self.save()
        except OSError as error:
            if before is None:
                del self.registers[register]
            else:
                self.registers[register] = before
            raise ScpiError(-250, f"{self.state_file.path}: {error.strerror or error}") from error

    def recall(self, session: Session, register: int) -> None:
        """Bring back what a register keeps."""
        if register not in self.registers:
            known = ", ".join(map(str, sorted(self.registers))) or "none"
            raise ScpiError(-221, f"register {register} is empty (kept: {known})")
        self._lose(f"{session.name} has recalled a state since")
        self.changes += 1
        with _refusing(-200):
            self._restore(self.registers[register])

    def grant(self, session: Session) -> bool:
        """Give a session the lock, if nobody has it and it has not ended; return whether it has it."""
        if self.owner is None:
            self.owner = session
        # It may have ended while it waited for its turn, in another thread.
        if self.owner is session and session.ended:
            self.owner = None
        return self.owner is session

    def forget(self, session: Session) -> None:
        """Let go of what a session that has ended held."""
        session.ended = True
        if self.owner is session:
            self.owner = None
        if self._anchored is session:
            self._lose("its session has ended")

    def _check_anchor(self, session: Session) -> None:
        if self._anchored is session:
            return
        reason = self._lost
        if self._anchored is not None:
            reason = f"the die holds the free phase of {self._anchored.name}"
        raise ScpiError(-230, f"stale; {reason}: INITiate FREE first")

    def _lose(self, reason: str) -> None:
        self._anchored, self._anchor, self._lost = None, None, reason

    def _snapshot(self) -> Snapshot:
        found = {f"state/{key}": array for key, array in _copied(self.substrate.state()).items()}
        found |= {f"achieved/{half}/{name}": g.copy() for (name, half), g in self.achieved.items()}
        return found

    def _restore(self, snapshot: Snapshot) -> None:
        state = {
            key.removeprefix("state/"): array for key, array in snapshot.items() if key.startswith("state/")
        }
        self.substrate.restore(_copied(state))
        self.achieved = {
            (name, half): snapshot[f"achieved/{half}/{name}"].copy()
            for half in _HALVES
            for name in (crossbar.name for crossbar in self.substrate.capabilities.crossbars)
            if f"achieved/{half}/{name}" in snapshot
        }


@contextmanager
def _refusing(number: int) -> Iterator[None]:
    """Turn what a substrate says no to into an error with a number of the standard's."""
    try:
        yield
    except CircuitsimError as error:
        raise ScpiError(number, str(error)) from error


def _copied(state: Snapshot) -> dict[str, FloatArray]:
    """Return a state that no longer changes with its die."""
    return {key: np.array(array, dtype=np.float64) for key, array in state.items()}
