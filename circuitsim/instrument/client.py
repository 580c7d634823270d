"""An instrument on a network as a `Substrate`: the commands of `circuitsim serve`, through PyVISA."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from circuitsim.chip import Conductances
from circuitsim.chip.substrate import Capabilities, ConverterLimits, Phase
from circuitsim.errors import InstrumentError
from circuitsim.instrument.link import Answer, Command, Link, RefusedError
from circuitsim.instrument.served.scpi import quoted
from circuitsim.netlist import Nudge
from circuitsim.netlist.tables import FloatArray

__all__ = ["VisaSubstrate"]

_HALVES = (("PLUS", 0), ("MINus", 1))
_WORDS: Mapping[Phase, str] = {
    "free": "FREE",
    "nudged": "NUDGed",
    "corrected": "CORRected",
    "dyadic": "DYADic",
}
_REGISTERS = 10
"""Of ``*SAV``: as many states can be gone back to."""
_GREETING = 5.0
"""How long the first answer of a connection may take [s]."""
_LOCK_WAIT = 1.0
"""How long to wait for a lock: a session that is just ending still has it [s]."""
_TEXT_SIZE = 1 << 24
"""Bytes of the longest description that is read."""
_COMMAND_PROTECTED = -203


class VisaSubstrate:
    """Satisfies `Substrate`, and can be saved, restored and told to wait where the instrument can.

    Everything that a phase depends on goes out with it, in one message, so a connection that was made anew
    serves like the old one. The instrument checks what it is sent, and so does this before it sends; its
    error queue is read with every answer, and costs no further round trip.

    Args:
        resource: a VISA resource name, ``TCPIP::127.0.0.1::5025::SOCKET`` for a raw socket.
        timeout: how long any one answer may take [s].
        resource_manager: PyVISA's library: ``@py`` for PyVISA-py, ``@ivi`` for a vendor's.
        lock: take the instrument for this session alone, and say who has it where that is refused.

    Raises:
        InstrumentError: PyVISA is missing, nobody answers, or not such an instrument; it is locked.
    """

    def __init__(
        self, resource: str, *, timeout: float = 30.0, resource_manager: str = "@py", lock: bool = True
    ) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise InstrumentError("must be more than 0 s", object=resource, field="timeout", value=timeout)
        self.resource = resource
        self._lock = lock
        self._timeout = timeout
        self._capabilities: Capabilities | None = None
        self._register = 0
        self._closed = False
        self._link = Link(resource, timeout=timeout, resource_manager=resource_manager, greet=self._greet)
        self._link.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def capabilities(self) -> Capabilities:
        assert self._capabilities is not None
        return self._capabilities

    @property
    def presentations(self) -> int:
        """How many free phases the die has gone through."""
        return self._count(self._ask("STAT:PRES?", answers=1)[0], "presentations")

    def circuit(self) -> str:
        """Return the description of the network, as YAML; empty where the instrument has none."""
        return self._decoded(self._ask("SYST:CIRC?", answers=1, largest=_TEXT_SIZE)[0])

    def commands(self) -> str:
        """Return what the instrument says about its own commands."""
        return self._decoded(self._ask("SYST:HELP?", answers=1, largest=_TEXT_SIZE)[0])

    def program(self, conductance: Conductances) -> Conductances:
        """Write crossbars (M, N) S in one operation; return what the instrument reads back of them."""
        if not self.capabilities.host_writes:
            raise InstrumentError(
                "writes its conductances itself",
                object=self.capabilities.identity,
                remedy="Train it by update().",
            )
        self.capabilities.check_program(conductance)
        if not conductance:
            return {}
        staged: list[list[Command | str]] = [["COND:DISC"]]
        queries: list[str] = []
        for name, pair in conductance.items():
            for word, half in _HALVES:
                values = pair[half]
                if values is not None:
                    staged.append([Command(f"COND:WRIT {quoted(name)},{word},", values)])
                    queries.append(f":COND:READ? {quoted(name)},{word}")
        # Nothing is written before all of it has been taken.
        self._link_of("program").ask(*staged, at_stake="Its conductances are what they were.")
        answers = self._ask(
            "COND:PROG",
            *queries,
            answers=len(queries),
            largest=8 * max(math.prod(crossbar.shape) for crossbar in self.capabilities.crossbars),
            at_stake="It may have written the conductances, or some of them.",
        )
        shapes = {crossbar.name: crossbar.shape for crossbar in self.capabilities.crossbars}
        left = iter(answers)
        found: dict[str, tuple[FloatArray, FloatArray | None]] = {}
        for name, (_, minus) in conductance.items():
            plus = self._numbers(next(left), shapes[name], name)
            found[name] = plus, None if minus is None else self._numbers(next(left), shapes[name], name)
        return found

    def relax(
        self, inputs: FloatArray, phase: Phase, nudge: Nudge | None = None, n_average: int = 1
    ) -> FloatArray:
        """Put samples (B, n_in) V through a phase and return readings (B, R) V, in one round trip."""
        volts = np.asarray(inputs, dtype=np.float64)
        self.capabilities.check_relax(volts, phase, nudge, n_average)
        parts: list[Command | str] = [Command("INP:VOLT ", volts)]
        if nudge is not None:
            parts += [Command(":NUDG:TARG ", nudge.target), f":NUDG:BETA {float(nudge.beta)!r}"]
        parts += [f":SENS:AVER {int(n_average)}", f":READ? {_WORDS[phase]}"]
        shape = len(volts), len(self.capabilities.readings)
        answer, *_ = self._ask(
            *parts,
            answers=1,
            largest=8 * math.prod(shape),
            at_stake="It may have gone through the phase, and counted it.",
        )
        return self._numbers(answer, shape, f"phase {phase}")

    def update(self, rates: Mapping[str, float]) -> int:
        """Let the devices learn by themselves from the last phases; return how many pulses that took."""
        self.capabilities.check_update(rates)
        if not rates:
            return 0
        listed = ",".join(f"{quoted(name)},{float(rate)!r}" for name, rate in rates.items())
        answer, *_ = self._ask(
            f"UPD {listed}", ":UPD:PULS?", answers=1, at_stake="It may have made the update."
        )
        return self._count(answer, "pulses")

    def calibrate(self) -> Mapping[str, float]:
        """Let the instrument calibrate itself; return what it found."""
        answer, *_ = self._ask(
            "CAL?", answers=1, largest=_TEXT_SIZE, at_stake="It may have calibrated itself."
        )
        found = self._document(answer, "CAL?")
        if not all(isinstance(value, int | float) for value in found.values()):
            raise self._link.nonsense("answers CAL? with what are no numbers", found)
        return {name: float(value) for name, value in found.items()}

    def wait(self, seconds: float) -> None:
        """Let devices drift for so many seconds of the instrument's own time."""
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InstrumentError("must be 0 s or more", object="wait", value=seconds)
        self._ask(f"DIAG:WAIT {float(seconds)!r}", at_stake="Its devices may have drifted.")

    def state(self) -> Mapping[str, FloatArray]:
        """Let the instrument keep its state, in the next of ten registers.

        Returns ``register`` and ``presentations``, both (1,): which one, and the count to come back with it.
        """
        register = self._register
        answer, *_ = self._ask(
            f"*SAV {register}", ":STAT:PRES?", answers=1, at_stake=f"Register {register} may be lost."
        )
        count = self._count(answer, "presentations")
        self._register = (register + 1) % _REGISTERS
        return {"register": np.array([float(register)]), "presentations": np.array([float(count)])}

    def restore(self, state: Mapping[str, FloatArray]) -> None:
        """Bring back what `state` kept, also in another session, or after the instrument was restarted."""
        try:
            register, wanted = (int(state[key][0]) for key in ("register", "presentations"))
        except (KeyError, IndexError, ValueError) as error:
            rule = "needs a register and a count of presentations"
            raise InstrumentError(rule, object="state", value=sorted(state)) from error
        if not 0 <= register < _REGISTERS:
            rule = f"must be 0 to {_REGISTERS - 1}"
            raise InstrumentError(rule, object="state", field="register", value=register)
        remedy = "Serve it with --state, so that it outlives the server, or start the run again."
        try:
            answer, *_ = self._ask(
                f"*RCL {register}",
                ":STAT:PRES?",
                answers=1,
                at_stake="It may have gone back to the state.",
                acknowledges=True,
            )
        except RefusedError as error:
            if error.number == _COMMAND_PROTECTED:
                raise
            rule = f"has lost the state of register {register}: {error.rule}"
            raise InstrumentError(rule, object=self.resource, remedy=remedy) from error
        count = self._count(answer, "presentations")
        if count != wanted:
            raise InstrumentError(
                f"has lost the state of register {register}: it holds one after {count} presentations, "
                f"not {wanted}",
                object=self.resource,
                remedy=remedy,
            )
        self._register = (register + 1) % _REGISTERS

    def close(self) -> None:
        """Give the lock back and let go of the instrument. It stays as it is."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._lock and self._link.connected:
                self._link.once(["SYST:LOCK:REL"], timeout=_GREETING)
        except InstrumentError:
            pass  # The lock goes with the session anyway.
        finally:
            self._link.close()

    # ------------------------------------------------------------------------------------- connection

    def _greet(self) -> None:
        """Find out who is there, and set up the session."""
        link = self._link
        waiting = min(self._timeout, _GREETING)
        identity = self._worded(link.once(["*CLS"], ["*IDN?"], answers=1, timeout=waiting)[0])
        if identity.count(",") < 3:
            raise link.nonsense("does not say who it is, as *IDN? asks for", identity)
        try:
            answer, *_ = link.once(
                ["FORM:BORD SWAP", ":SYST:CAP?"], answers=1, largest=_TEXT_SIZE, timeout=waiting
            )
        except RefusedError as error:
            raise InstrumentError(
                f"is no substrate that can be driven from here: {error.rule}",
                object=self.resource,
                field="*IDN?",
                value=identity,
                remedy="It needs the commands of `circuitsim serve`: its SYSTem:HELP? lists them.",
            ) from error
        capabilities = self._described(answer)
        if self._capabilities is not None and not _same(self._capabilities, capabilities):
            raise InstrumentError(
                "is another instrument than before the connection was lost",
                object=self.resource,
                value=identity,
                remedy=f"It was {self._capabilities.identity}. Start the run again.",
            )
        if self._lock:
            # What others have asked for comes before.
            self._take_lock(self._timeout)
        self._capabilities = capabilities

    def _take_lock(self, waiting: float) -> None:
        end = time.monotonic() + _LOCK_WAIT
        while True:
            answer, *_ = self._link.once(["SYST:LOCK:REQ?"], answers=1, timeout=waiting)
            if self._count(answer, "lock") == 1:
                return
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        owner = self._worded(self._link.once(["SYST:LOCK:OWN?"], answers=1, timeout=waiting)[0]).strip('"')
        raise InstrumentError(
            f"is locked by {owner or 'a session that has just ended'}",
            object=self.resource,
            remedy="Wait until that session ends; in Python, lock=False looks without using it.",
        )

    def _described(self, answer: Answer) -> Capabilities:
        found = self._document(answer, "SYST:CAP?")
        if found.get("settling_time", 0.0) is None:
            found["settling_time"] = math.nan
        try:
            capabilities = _CAPABILITIES.validate_json(json.dumps(found), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise self._link.nonsense(
                f"describes itself wrongly: SYST:CAP?: {place}: {first['msg']}", first["input"]
            ) from error
        problem = _contradiction(capabilities)
        if problem:
            raise self._link.nonsense(
                f"describes itself wrongly: SYST:CAP?: {problem}", capabilities.identity
            )
        return capabilities

    # ------------------------------------------------------------------------------------------ answers

    def _link_of(self, what: str) -> Link:
        if self._closed:
            raise InstrumentError(f"was closed before {what}", object=self.resource)
        return self._link

    def _ask(self, *parts: Command | str, **options: Any) -> list[Answer]:
        return self._link_of(str(parts[-1])).ask(parts, **options)

    def _numbers(self, answer: Answer, shape: tuple[int, ...], what: str) -> FloatArray:
        if isinstance(answer, str):
            raise self._link.nonsense(f"answers {what} with a word, not with a block", answer)
        if len(answer) != 8 * math.prod(shape):
            size = f"{len(answer)} bytes, not the {8 * math.prod(shape)} of {shape} doubles"
            raise self._link.nonsense(f"answers {what} with {size}", bytes(answer[:16]))
        values = np.frombuffer(answer, dtype="<f8").reshape(shape).astype(np.float64, copy=False)
        if not np.isfinite(values).all():
            raise self._link.nonsense(f"answers {what} with numbers that are not finite", bytes(answer[:16]))
        return values

    def _worded(self, answer: Answer) -> str:
        if not isinstance(answer, str):
            raise self._link.nonsense("answers with a block where a word was expected", bytes(answer[:16]))
        return answer

    def _count(self, answer: Answer, what: str) -> int:
        text = self._worded(answer)
        if not text.isdigit():
            raise self._link.nonsense(f"gives no whole number of {what}", text)
        return int(text)

    def _decoded(self, answer: Answer) -> str:
        if isinstance(answer, str):
            raise self._link.nonsense("answers with a word, not with a block", answer)
        try:
            return answer.decode()
        except UnicodeDecodeError:
            raise self._link.nonsense("answers with a block that is no text", bytes(answer[:40])) from None

    def _document(self, answer: Answer, asked: str) -> dict[str, Any]:
        text = self._decoded(answer)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._link.nonsense(f"answers {asked} with what is no JSON object", text[:40])
        return found


_CAPABILITIES = TypeAdapter(Capabilities)


def _same(one: Capabilities, other: Capabilities) -> bool:
    """Whether two descriptions say the same, a settling time that nobody knows included."""
    return repr(one) == repr(other)


def _contradiction(found: Capabilities) -> str:
    """Return what cannot be in a description; empty where all can."""
    names = [crossbar.name for crossbar in found.crossbars]
    checks = [
        (found.inputs >= 1 and found.outputs >= 1, "no inputs, or no outputs"),
        (bool(found.readings), "no node is read"),
        (len(set(found.readings)) == len(found.readings), "a node is read twice"),
        (len(set(names)) == len(names), "two crossbars of one name"),
        ("free" in found.phases, "no free phase"),
        (found.most_readings >= 1 and found.most_samples >= 1, "no readings, or no samples"),
        (found.largest_gain >= 1, "a gain under 1"),
        (math.isfinite(found.resolution) and found.resolution >= 0, "a resolution under 0"),
        (not found.settling_time < 0, "a settling time under 0"),
        (_positive(found.nudge.conductance, found.nudge.scale, found.nudge.largest_beta), "no nudge"),
        (_orderly(found.dac) and _orderly(found.adc), "a converter without a range, or without bits"),
    ]
    for crossbar in found.crossbars:
        window = 0 <= crossbar.low < crossbar.high and math.isfinite(crossbar.high)
        checks.append((window, f"{crossbar.name} has no window of conductances"))
        checks.append((min(crossbar.shape) >= 1, f"{crossbar.name} has no devices"))
    return next((problem for good, problem in checks if not good), "")


def _positive(*values: float) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)


def _orderly(converter: ConverterLimits) -> bool:
    finite = math.isfinite(converter.low) and math.isfinite(converter.high)
    return finite and converter.low < converter.high and 1 <= converter.bits <= 64
