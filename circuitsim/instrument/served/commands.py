"""The command tree of a served die, as one table: `HELP?` is made from it, and so is what is understood."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from circuitsim.chip.substrate import CrossbarLimits, Phase
from circuitsim.errors import CircuitsimError
from circuitsim.instrument.served.scpi import (
    Parameter,
    ScpiError,
    block,
    floats_block,
    quoted,
    short_form,
    shown,
)
from circuitsim.instrument.served.session import REGISTERS, Half, Session
from circuitsim.netlist.tables import FloatArray

__all__ = ["COMMANDS", "Command", "CommandTree", "help_text"]

Parameters: TypeAlias = Sequence[Parameter]
Run: TypeAlias = Callable[[Session, Parameters], str | bytes | None]

_PHASES: dict[str, Phase] = {"FREE": "free", "NUDG": "nudged", "CORR": "corrected", "DYAD": "dyadic"}
_PHASE_FORMS = ("FREE", "NUDGed", "CORRected", "DYADic")
_HALF_FORMS = ("PLUS", "MINus")
_VERSION = "1999.0"
"""Of SCPI."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: how its header is written, what it takes, what it does.

    ``most`` is None where parameters may go on. ``die``: it takes the die, and so waits for its turn, but
    where ``at_once`` says that there is nothing to wait for. ``guarded``: the lock of another session forbids
    it. ``always``: it is done even behind an error of the same message.
    """

    header: str
    run: Run
    parameters: str = ""
    help: str
    least: int = 0
    most: int | None = 0
    die: bool = False
    at_once: Callable[[Session], bool] = lambda session: False
    guarded: bool = False
    always: bool = False

    def check_count(self, parameters: Parameters) -> None:
        """Refuse too few parameters, or too many."""
        if len(parameters) < self.least:
            raise ScpiError(-109, f"{self.header} takes {self.parameters}")
        if self.most is not None and len(parameters) > self.most:
            takes = f"takes {self.parameters}" if self.parameters else "takes no parameters"
            raise ScpiError(-108, f"{self.header} {takes}")


class CommandTree:
    """Finds commands by short and long forms, relative to the command before in the same message."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self._known: dict[str, Command] = {}
        for command in commands:
            for form in spellings(command.header):
                assert form not in self._known, form
                self._known[form] = command

    def find(self, header: str, path: str) -> tuple[Command, str]:
        """Return the command of a header, and the path that the next header of its message starts from.

        ``path`` ends in a colon, or is empty: the root. A header without a colon in front that is not known
        there is looked for at the root, which the standard leaves to a colon.

        Raises:
            ScpiError: there is none.
        """
        if header.startswith("*"):
            if header in self._known:
                return self._known[header], path
        else:
            plain = header.removeprefix(":")
            for place in ("",) if header.startswith(":") or not path else (path, ""):
                found = self._known.get(place + plain)
                if found is not None:
                    return found, (place + plain).rpartition(":")[0] + ":" if ":" in place + plain else ""
        raise ScpiError(-113, f"{shown(header)} (HELP? lists the commands)")


def spellings(header: str) -> list[str]:
    """Return every way to write a header: ``SYSTem:ERRor[:NEXT]?`` is SYST:ERR?, SYSTEM:ERROR:NEXT? ..."""
    query = "?" if header.endswith("?") else ""
    choices: list[tuple[str, ...]] = []
    for optional, mnemonic in re.findall(r"(\[?):?([*A-Za-z0-9]+)\]?", header.removesuffix("?")):
        forms = dict.fromkeys((short_form(mnemonic), mnemonic.upper()))
        choices.append((*forms, "") if optional else tuple(forms))
    return [":".join(part for part in parts if part) + query for parts in itertools.product(*choices)]


def help_text() -> str:
    """Return the documented command tree."""
    rows = [(f"{command.header} {command.parameters}".strip(), command.help) for command in COMMANDS]
    width = 44
    lines = []
    for left, right in rows:
        if len(left) > width:
            lines += [left, f"{'':{width}}  {right}"]
        else:
            lines.append(f"{left:{width}}  {right}")
    return _PREFACE + "\n".join(lines) + "\n"


_PREFACE = """\
Commands of a served die. Capitals are the short form; [...] may be left out; case does not count.
A message ends with a line feed; commands in it are separated by semicolons, and are relative to the one
before unless they begin with a colon. Behind an error, the rest of a message is left out, but for queries
of errors and status. Numbers are in SI units. A block is #<n><length><bytes>: float64, little-endian unless
FORMat:BORDer says otherwise. Names are in quotes. With a lock, others are refused what is marked L.

"""

# ------------------------------------------------------------------------------- common commands


def _identity(session: Session, _: Parameters) -> str:
    # A deck's title may hold anything; what comes back is one line of four fields, and one response.
    text = session.die.substrate.capabilities.identity.replace(";", " ")
    fields = text.encode("ascii", "replace").decode("ascii").split(",")
    model = " ".join(fields[1:-2])
    return ",".join(" ".join(field.split()) for field in (fields[0], model, *fields[-2:]))


def _reset(session: Session, _: Parameters) -> None:
    session.reset()


def _clear(session: Session, _: Parameters) -> None:
    session.errors.clear()
    session.status.events = 0


def _enable_events(session: Session, parameters: Parameters) -> None:
    session.status.events_enabled = parameters[0].integer("*ESE", 0, 255)


def _events_enabled(session: Session, _: Parameters) -> str:
    return str(session.status.events_enabled)


def _events(session: Session, _: Parameters) -> str:
    return str(session.status.take_events())


def _enable_service(session: Session, parameters: Parameters) -> None:
    # Bit 6 is the summary itself: it cannot be enabled.
    session.status.service_enabled = parameters[0].integer("*SRE", 0, 255) & ~64


def _service_enabled(session: Session, _: Parameters) -> str:
    return str(session.status.service_enabled)


def _status_byte(session: Session, _: Parameters) -> str:
    return str(session.status.byte(errors=len(session.errors) > 0, message=session.answering))


def _complete(session: Session, _: Parameters) -> None:
    session.status.complete()


def _completed(session: Session, _: Parameters) -> str:
    return "1"


def _nothing(session: Session, _: Parameters) -> None:
    """Wait for what is pending: commands of a session never overlap."""


def _test(session: Session, _: Parameters) -> str:
    return "0" if session.die.test(session) else "1"


def _calibrated(session: Session, _: Parameters) -> str:
    try:
        session.die.calibrate(session)
    except ScpiError as error:
        session.refused(error)
        return "1"
    return "0"


def _save_register(session: Session, parameters: Parameters) -> None:
    session.die.keep(parameters[0].integer("*SAV", 0, REGISTERS - 1))


def _recall_register(session: Session, parameters: Parameters) -> None:
    session.die.recall(session, parameters[0].integer("*RCL", 0, REGISTERS - 1))


# ----------------------------------------------------------------------------------- SYSTem, FORMat


def _next_error(session: Session, _: Parameters) -> str:
    return session.errors.pop()


def _error_count(session: Session, _: Parameters) -> str:
    return str(len(session.errors))


def _version(session: Session, _: Parameters) -> str:
    return _VERSION


def _help(session: Session, _: Parameters) -> bytes:
    return block(help_text().encode("ascii"))


def _capabilities(session: Session, _: Parameters) -> bytes:
    return _json_block(asdict(session.die.substrate.capabilities))


def _circuit(session: Session, _: Parameters) -> bytes:
    return block(session.die.circuit.encode("utf-8"))


def _request_lock(session: Session, _: Parameters) -> str:
    return "1" if session.die.grant(session) else "0"


def _lock_decided(session: Session) -> bool:
    return session.die.owner is not None


def _release_lock(session: Session, _: Parameters) -> None:
    owner = session.die.owner
    if owner is not None and owner is not session:
        raise ScpiError(-203, f"the lock is that of {owner.name}")
    session.die.owner = None


def _lock_owner(session: Session, _: Parameters) -> str:
    owner = session.die.owner
    return quoted("" if owner is None else owner.name)


def _save(session: Session, _: Parameters) -> None:
    die = session.die
    if die.state_file is None:
        raise ScpiError(-221, "this server keeps no state file: start it with --state FILE")
    try:
        die.save()
    except OSError as error:
        raise ScpiError(-250, f"{die.state_file.path}: {error.strerror or error}") from error


def _set_border(session: Session, parameters: Parameters) -> None:
    session.big_endian = parameters[0].word("FORMat:BORDer", "NORMal", "SWAPped") == "NORM"


def _border(session: Session, _: Parameters) -> str:
    return "NORM" if session.big_endian else "SWAP"


# -------------------------------------------------------------------------------------- the phases


def _set_inputs(session: Session, parameters: Parameters) -> None:
    capabilities = session.die.substrate.capabilities
    volts = _rows(session, parameters[0], "INPut:VOLTage", capabilities.inputs, "inputs")
    try:
        capabilities.check_relax(volts, "free", None, 1)
    except CircuitsimError as error:
        raise ScpiError(-222, str(error)) from error
    session.inputs = volts


def _inputs(session: Session, _: Parameters) -> bytes:
    if session.inputs is None:
        raise ScpiError(-221, "no inputs: send INPut:VOLTage first")
    dac = session.die.substrate.capabilities.dac
    return floats_block(dac.rounded(session.inputs), big_endian=session.big_endian)


def _set_target(session: Session, parameters: Parameters) -> None:
    outputs = session.die.substrate.capabilities.outputs
    target = _rows(session, parameters[0], "NUDGe:TARGet", outputs, "outputs")
    if not np.isfinite(target).all():
        raise ScpiError(-222, "NUDGe:TARGet: must be finite")
    session.target = target


def _set_beta(session: Session, parameters: Parameters) -> None:
    beta = parameters[0].number("NUDGe:BETA")
    largest = session.die.substrate.capabilities.nudge.largest_beta
    if not 0 < abs(beta) <= largest:
        text = shown(parameters[0].text)
        raise ScpiError(-222, f"NUDGe:BETA: must be at most {largest:g}, and not 0 (got {text})")
    session.beta = beta


def _beta(session: Session, _: Parameters) -> str:
    if session.beta is None:
        raise ScpiError(-221, "no beta: send NUDGe:BETA first")
    return repr(session.beta)


def _set_average(session: Session, parameters: Parameters) -> None:
    most = session.die.substrate.capabilities.most_readings
    session.average = parameters[0].integer("SENSe:AVERage", 1, most)


def _average(session: Session, _: Parameters) -> str:
    return str(session.average)


def _initiate(session: Session, parameters: Parameters) -> None:
    session.die.relax(session, _PHASES[parameters[0].word("phase", *_PHASE_FORMS)])


def _fetch(session: Session, _: Parameters) -> bytes:
    return floats_block(_readings(session), big_endian=session.big_endian)


def _fetch_shape(session: Session, _: Parameters) -> str:
    return ",".join(map(str, _readings(session).shape))


def _read(session: Session, parameters: Parameters) -> bytes:
    _initiate(session, parameters)
    return _fetch(session, ())


def _readings(session: Session) -> FloatArray:
    if session.readings is None:
        raise ScpiError(-230, "no readings yet: INITiate first")
    return session.readings


# ----------------------------------------------------------------------------------- conductances


def _write_conductance(session: Session, parameters: Parameters) -> None:
    crossbar, half = _half(session, parameters[0], parameters[1])
    g = parameters[2].floats("CONDuctance:WRITe", big_endian=session.big_endian)
    rows, columns = crossbar.shape
    if g.size != rows * columns:
        rule = f"must be {rows} x {columns} doubles (got {g.size})"
        raise ScpiError(-161, f"{crossbar.name}: {rule}")
    g = g.reshape(crossbar.shape)
    # The other half of a pair comes later: devices that are left out stand for it.
    other = np.zeros(crossbar.shape) if crossbar.differential else None
    pair = (g, other) if half == "PLUS" or other is None else (other, g)
    try:
        session.die.substrate.capabilities.check_program({crossbar.name: pair})
    except CircuitsimError as error:
        raise ScpiError(-222, str(error)) from error
    session.staged[crossbar.name, half] = g


def _program(session: Session, _: Parameters) -> None:
    session.die.program(session)


def _discard(session: Session, _: Parameters) -> None:
    session.staged.clear()


def _read_conductance(session: Session, parameters: Parameters) -> bytes:
    crossbar, half = _half(session, parameters[0], parameters[1])
    g = session.die.achieved.get((crossbar.name, half))
    if g is None:
        raise ScpiError(-230, f"{crossbar.name} has not been programmed yet")
    return floats_block(g, big_endian=session.big_endian)


def _half(session: Session, name: Parameter, half: Parameter) -> tuple[CrossbarLimits, Half]:
    crossbar = _crossbar(session, name)
    chosen: Half = "PLUS" if half.word("half", *_HALF_FORMS) == "PLUS" else "MIN"
    if chosen == "MIN" and not crossbar.differential:
        raise ScpiError(-224, f"{crossbar.name}: has one device per crossing, PLUS")
    return crossbar, chosen


def _crossbar(session: Session, name: Parameter) -> CrossbarLimits:
    wanted = name.string("crossbar")
    crossbars = session.die.substrate.capabilities.crossbars
    for crossbar in crossbars:
        if crossbar.name == wanted:
            return crossbar
    known = ", ".join(crossbar.name for crossbar in crossbars)
    raise ScpiError(-224, f"no crossbar {shown(wanted)} (here: {known})")


def _update(session: Session, parameters: Parameters) -> None:
    if len(parameters) % 2:
        raise ScpiError(-109, "UPDate takes names and rates by turns")
    rates: dict[str, float] = {}
    for name, rate in zip(parameters[::2], parameters[1::2], strict=True):
        crossbar = _crossbar(session, name)
        if crossbar.name in rates:
            raise ScpiError(-224, f"{crossbar.name} is named twice")
        rates[crossbar.name] = rate.number(f"rate of {crossbar.name}")
    session.die.update(session, rates)


def _pulses(session: Session, _: Parameters) -> str:
    return str(session.pulses)


# ------------------------------------------------------------------------------- the die as a whole


def _calibrate(session: Session, _: Parameters) -> bytes:
    return _json_block(session.die.calibrate(session))


def _presentations(session: Session, _: Parameters) -> str:
    return str(session.die.substrate.presentations)


def _wait(session: Session, parameters: Parameters) -> None:
    seconds = parameters[0].number("DIAGnostic:WAIT")
    if seconds < 0:
        raise ScpiError(-222, "DIAGnostic:WAIT: must not be negative")
    session.die.wait(session, seconds)


def _rows(session: Session, parameter: Parameter, what: str, width: int, of: str) -> FloatArray:
    """Return a block as rows (B, width)."""
    values = parameter.floats(what, big_endian=session.big_endian)
    if not width:
        raise ScpiError(-221, f"{what}: this circuit has no {of}")
    if not values.size or values.size % width:
        raise ScpiError(-161, f"{what}: must be rows of {width} doubles (got {values.size} doubles)")
    return values.reshape(-1, width)


def _json_block(document: Mapping[str, Any]) -> bytes:
    return block(json.dumps(_strict(document), allow_nan=False).encode())


def _strict(value: Any) -> Any:
    """Return a document whose numbers JSON knows: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


COMMANDS: tuple[Command, ...] = (
    Command(header="*IDN?", run=_identity, help="Maker, circuit, number of the die, version."),
    Command(
        header="*RST",
        run=_reset,
        guarded=True,
        help="L. Settings of this session to defaults; conductances, registers and errors stay.",
    ),
    Command(header="*CLS", run=_clear, always=True, help="Empty the error queue and the event register."),
    Command(
        header="*ESE",
        run=_enable_events,
        parameters="<0-255>",
        least=1,
        most=1,
        help="Which events the status byte sums up.",
    ),
    Command(header="*ESE?", run=_events_enabled, always=True, help="The same, as it is."),
    Command(
        header="*ESR?",
        run=_events,
        always=True,
        help="Events since the last *ESR?: 1 complete, 8 device, 16 execution, 32 command error.",
    ),
    Command(
        header="*SRE",
        run=_enable_service,
        parameters="<0-255>",
        least=1,
        most=1,
        help="Which bits of the status byte ask for service (bit 6).",
    ),
    Command(header="*SRE?", run=_service_enabled, always=True, help="The same, as it is."),
    Command(
        header="*STB?",
        run=_status_byte,
        always=True,
        help="Status byte: 4 errors queued, 16 response before it, 32 events, 64 service.",
    ),
    Command(header="*OPC", run=_complete, help="Note an event when all before it is done: at once."),
    Command(header="*OPC?", run=_completed, always=True, help="1 when all before it is done."),
    Command(header="*WAI", run=_nothing, help="Wait for all before it: commands of a session never overlap."),
    Command(
        header="*TST?",
        run=_test,
        die=True,
        guarded=True,
        help="L. 0 if a free phase in the middle of the inputs' range reads voltages in range, else 1.",
    ),
    Command(
        header="*CAL?",
        run=_calibrated,
        die=True,
        guarded=True,
        help="L. Calibrate: 0 done, 1 failed.",
    ),
    Command(
        header="*SAV",
        run=_save_register,
        parameters="<0-9>",
        least=1,
        most=1,
        die=True,
        guarded=True,
        help="L. Keep the die's state in a register, and in the state file if there is one.",
    ),
    Command(
        header="*RCL",
        run=_recall_register,
        parameters="<0-9>",
        least=1,
        most=1,
        die=True,
        guarded=True,
        help="L. Bring the state of a register back.",
    ),
    Command(
        header="SYSTem:ERRor[:NEXT]?",
        run=_next_error,
        always=True,
        help='Oldest error of this session: <number>,"<words>;<details>"; 0 if there is none.',
    ),
    Command(header="SYSTem:ERRor:COUNt?", run=_error_count, always=True, help="How many errors are queued."),
    Command(header="SYSTem:VERSion?", run=_version, help="Version of SCPI."),
    Command(header="SYSTem:HELP?", run=_help, help="Block of text: this list."),
    Command(header="HELP?", run=_help, help="The same."),
    Command(
        header="SYSTem:CAPabilities?",
        run=_capabilities,
        help="Block of JSON: ranges, converters, crossbars, phases, names of what is read.",
    ),
    Command(
        header="SYSTem:CIRCuit?",
        run=_circuit,
        help="Block of YAML: the network description; empty where there is none.",
    ),
    Command(
        header="SYSTem:LOCK:REQuest?",
        run=_request_lock,
        # What others asked for before is done before the lock is given: nothing of theirs comes after it.
        die=True,
        at_once=_lock_decided,
        help="Ask for the lock: 1 it is this session's, 0 another has it. It goes with its session.",
    ),
    Command(header="SYSTem:LOCK:RELease", run=_release_lock, help="Give the lock back."),
    Command(header="SYSTem:LOCK:OWNer?", run=_lock_owner, help='"address:port" of who has it, or "".'),
    Command(header="SYSTem:SAVE", run=_save, die=True, help="Write the state file now."),
    Command(
        header="FORMat:BORDer",
        run=_set_border,
        parameters="NORMal|SWAPped",
        least=1,
        most=1,
        help="Byte order of blocks: NORMal big-endian, SWAPped little-endian (default).",
    ),
    Command(header="FORMat:BORDer?", run=_border, help="The same, as it is."),
    Command(
        header="INPut:VOLTage",
        run=_set_inputs,
        parameters="<block>",
        least=1,
        most=1,
        help="Inputs of B samples, B x n_in doubles [V].",
    ),
    Command(header="INPut:VOLTage?", run=_inputs, help="Block: the same, as the DACs' codes have them [V]."),
    Command(
        header="NUDGe:TARGet",
        run=_set_target,
        parameters="<block>",
        least=1,
        most=1,
        help="Targets of B samples, B x K doubles [V, or probabilities].",
    ),
    Command(
        header="NUDGe:BETA",
        run=_set_beta,
        parameters="<number>",
        least=1,
        most=1,
        help="Strength of the nudge; may be negative.",
    ),
    Command(header="NUDGe:BETA?", run=_beta, help="The same, as it is."),
    Command(
        header="SENSe:AVERage",
        run=_set_average,
        parameters="<n>",
        least=1,
        most=1,
        help="How many readings of a phase are averaged.",
    ),
    Command(header="SENSe:AVERage?", run=_average, help="The same, as it is."),
    Command(
        header="INITiate",
        run=_initiate,
        parameters="FREE|NUDGed|CORRected|DYADic",
        least=1,
        most=1,
        die=True,
        guarded=True,
        help="L. Go through a phase. All but FREE need a FREE one of the same inputs before.",
    ),
    Command(
        header="FETCh?",
        run=_fetch,
        help="Block: last readings, B x R doubles [V]; of a FREE phase voltages, else their changes.",
    ),
    Command(header="FETCh:SHAPe?", run=_fetch_shape, help="B,R of the same."),
    Command(
        header="READ?",
        run=_read,
        parameters="FREE|NUDGed|CORRected|DYADic",
        least=1,
        most=1,
        die=True,
        guarded=True,
        help="L. INITiate and FETCh? in one.",
    ),
    Command(
        header="CONDuctance:WRITe",
        run=_write_conductance,
        parameters="<name>,PLUS|MINus,<block>",
        least=3,
        most=3,
        help="Stage one half of a crossbar for this session, M x N doubles [S].",
    ),
    Command(
        header="CONDuctance:PROGram",
        run=_program,
        die=True,
        guarded=True,
        help="L. Write all that is staged, in one operation.",
    ),
    Command(header="CONDuctance:DISCard", run=_discard, help="Drop what is staged."),
    Command(
        header="CONDuctance:READ?",
        run=_read_conductance,
        parameters="<name>,PLUS|MINus",
        least=2,
        most=2,
        help="Block: what was read back when that half was last programmed [S].",
    ),
    Command(
        header="UPDate",
        run=_update,
        parameters="<name>,<rate>[,<name>,<rate>...]",
        least=2,
        most=None,
        die=True,
        guarded=True,
        help="L. Let devices move by -rate dC/dg, from the phases of this session [rate: S per W/S].",
    ),
    Command(header="UPDate:PULSes?", run=_pulses, help="Pulses that the last update took."),
    Command(
        header="CALibration?",
        run=_calibrate,
        die=True,
        guarded=True,
        help="L. Calibrate; block of JSON: what was found.",
    ),
    Command(
        header="STATe:PRESentations?",
        run=_presentations,
        help="Count of free phases so far: noise goes by it.",
    ),
    Command(
        header="DIAGnostic:WAIT",
        run=_wait,
        parameters="<seconds>",
        least=1,
        most=1,
        die=True,
        guarded=True,
        help="L. Let time pass for the devices, which drift.",
    ),
)
