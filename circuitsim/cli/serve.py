"""`circuitsim serve`: one die as an instrument on the network."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from circuitsim.cli.output import announce_compilation, print_line, remark
from circuitsim.cli.source import check_choice, refuse_other_kinds
from circuitsim.errors import SpecError
from circuitsim.file_kinds import is_experiment

if TYPE_CHECKING:
    from circuitsim.devices import DeviceCard
    from circuitsim.instrument.served.server import ServerLimits
    from circuitsim.instrument.served.session import ServedDie
    from circuitsim.study.bench import Bench

_BITS = 16


def command(
    circuit: Path = typer.Argument(..., help="Network description or experiment (.yaml)."),
    cards: list[str] = typer.Option(
        [], "--cards", help="Device card of the die: its name or a file; repeat for several."
    ),
    seed: int | None = typer.Option(
        None, "--seed", min=0, help="Seed of the initial conductances, and of the die."
    ),
    die: int | None = typer.Option(None, "--die", min=0, help="Seed of the die, where it is another."),
    window: str | None = typer.Option(
        None, "--window", help="Conductance window: that of the network (the default), or of the card."
    ),
    bits: int | None = typer.Option(
        None, "--bits", min=2, max=24, help=f"Bits of DACs and ADCs that no card describes ({_BITS})."
    ),
    port: int = typer.Option(5025, "--port", min=0, max=65535, help="TCP port; 0 takes any that is free."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to serve on; others expose it."),
    state: Path | None = typer.Option(
        None, "--state", help="File that keeps the die between runs: resumed if it exists."
    ),
    save_every: float = typer.Option(
        10.0, "--save-every", min=0.1, help="At most so many seconds between changes and the state file."
    ),
    clients: int = typer.Option(16, "--clients", min=1, max=1000, help="Most clients at a time."),
    timeout: float = typer.Option(
        10.0, "--timeout", min=0.1, help="Seconds for the rest of a message, or to read responses."
    ),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Log connections on standard error."),
) -> None:
    """Serve one die as an instrument: SCPI over a raw socket, as PyVISA and other lab software speak it.

    The die is behind its DACs and ADCs: clients see voltages (V) as codes have them, never what its devices
    really are. HELP? lists the commands. Of an experiment it is the die before training, with its cards,
    readout, programming and update; options override them. There is no authentication: keep to 127.0.0.1
    unless all who reach the port may use the die. Ctrl-C or SIGTERM finishes the command at hand, saves the
    state, and exits with 0.

    Example: circuitsim serve netlists/digits.yaml --seed 7 --state die.npz
    """
    announce_compilation()
    if window is not None:
        check_choice("--window", window, ("network", "card"))
    bench = _bench(circuit, cards, seed, die, window)
    served = _served(bench, circuit, bits, state)
    try:
        resumed = served.resume()
    except OSError as error:
        raise SpecError(
            f"cannot be written: {error.strerror or error}", field="--state", value=str(state)
        ) from error
    if resumed:
        kept = ", ".join(map(str, sorted(served.registers))) or "none"
        remark(f"resumed from {state}; registers: {kept}")
    import asyncio

    from circuitsim.instrument.served.server import ServerLimits

    limits = ServerLimits(clients=clients, silence=timeout, unread=timeout)
    try:
        # What has to be compiled is compiled now, not while a client waits.
        served.warm_up()
        asyncio.run(_serve(served, bench, host, port, limits, save_every, verbose))
    finally:
        if served.state_file is not None:
            served.state_file.release()


async def _serve(
    served: ServedDie,
    bench: Bench,
    host: str,
    port: int,
    limits: ServerLimits,
    save_every: float,
    verbose: bool,
) -> None:
    import asyncio

    from circuitsim.instrument.served.server import serve_die

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    before = {
        number: signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def ready(address: str, number: int) -> None:
        if _exposed(address):
            remark(
                f"warning: {address}:{number} is not only for this machine: whoever reaches it can read and "
                "write this die, without a password"
            )
        resource = f"TCPIP::{_reachable(address)}::{number}::SOCKET"
        name, card = bench.plan.netlist.title, bench.card.name
        print_line(
            f"serving {name} (die {bench.chip.seed}, card {card}) on {address}:{number}: visa {resource}"
        )
        print_line(f"in an experiment: substrate: visa:{resource}   HELP? lists commands, Ctrl-C stops")
        typer.get_text_stream("stdout").flush()

    try:
        await serve_die(
            served,
            host=host,
            port=port,
            limits=limits,
            save_every=save_every,
            ready=ready,
            stop=stop,
            log=remark if verbose else lambda line: None,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bench(circuit: Path, cards: list[str], seed: int | None, die: int | None, window: str | None) -> Bench:
    """Return the die to serve, made ready as that of an experiment is."""
    from circuitsim.study import load_experiment
    from circuitsim.study.bench import prepare

    if not is_experiment(circuit):
        return _network_bench(circuit, cards, seed or 0, die, window or "network")
    given: dict[str, Any] = {"seed": seed, "die": die, "window": window}
    if cards:
        # Paths on the command line are relative to the working folder, those in the file to its own.
        given["cards"] = tuple(_card_paths(cards))
    changes = {key: value for key, value in given.items() if value is not None}
    experiment = load_experiment(circuit).model_copy(update=changes)
    return prepare(experiment, folder=circuit.parent, file=circuit)


def _network_bench(path: Path, cards: list[str], seed: int, die: int | None, window: str) -> Bench:
    """Return the bench of a network by itself, with samples that are never looked at."""
    import numpy as np

    from circuitsim.data import DataSet
    from circuitsim.devices import merged_cards
    from circuitsim.network import load_network, parse_document
    from circuitsim.study.bench import make_bench
    from circuitsim.study.experiment import ExperimentSpec

    refuse_other_kinds(path, "network")
    network = load_network(path)
    card = merged_cards(_card_paths(cards))
    document = {
        "name": "served",
        "network": path.name,
        "cards": cards,
        "seed": seed,
        "die": die,
        "window": window,
        "estimators": [{"kind": "asymep"}],
    }
    inputs = np.zeros((1, network.input_size))
    outputs = network.output_size
    classes = None if network.cost.kind == "squared_error" else outputs
    labels = np.zeros((1, outputs)) if classes is None else np.zeros(1, dtype=np.int64)
    samples = DataSet(
        name="none",
        train_inputs=inputs,
        train_labels=labels,
        test_inputs=inputs,
        test_labels=labels,
        classes=classes,
    )
    experiment = parse_document(ExperimentSpec, document, file=path)
    return make_bench(experiment, network, card, samples, file=path)


def _card_paths(cards: list[str]) -> list[str]:
    from circuitsim.devices import find_card

    try:
        return [str(find_card(card).resolve()) for card in cards]
    except SpecError as error:
        raise SpecError(error.rule, field="--cards", value=error.value, remedy=error.remedy) from error


def _served(bench: Bench, path: Path, bits: int | None, state: Path | None) -> ServedDie:
    from circuitsim.instrument.served.session import ServedDie
    from circuitsim.instrument.served.state_file import StateFile
    from circuitsim.instrument.simulated import simulated_substrate, with_converters

    card, netlist, experiment = bench.card, bench.plan.netlist, bench.experiment
    if bits is not None and card.dac is not None and card.adc is not None:
        raise SpecError(
            f"is for converters that no card describes, and {card.name} has both",
            field="--bits",
            value=bits,
            remedy="Leave it out, or change the card.",
        )
    substrate = simulated_substrate(
        netlist,
        bench.cost,
        card,
        seed=bench.chip.seed,
        bits=bits or _BITS,
        readout=experiment.readout,
        programming=experiment.programming,
        update=experiment.update,
        settings=experiment.solver.settings(),
    )
    file = None
    if state is not None:
        if state.exists() and path.exists() and state.samefile(path):
            raise SpecError("is the file to serve", field="--state", value=str(state))
        identity = {
            "circuit": netlist.digest,
            "card": _digest(with_converters(card, netlist, bits=bits or _BITS)),
            "die": str(bench.chip.seed),
            "update": experiment.update.model_dump_json(),
        }
        file = StateFile(path=state, identity=identity)
    return ServedDie(substrate=substrate, circuit=_description(bench), state_file=file)


def _description(bench: Bench) -> str:
    """Return the network description of a die as it was made, or nothing for that of a deck."""
    import yaml

    network = bench.network
    if network is None:
        return ""
    if bench.experiment.window == "card" and bench.card.crossbar.range is not None:
        network = network.scaled_to(*bench.card.crossbar.range)
    return yaml.safe_dump(network.model_dump(mode="json", by_alias=True), sort_keys=False)


def _digest(card: DeviceCard) -> str:
    document = json.dumps(card.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()


def _exposed(address: str) -> bool:
    """Whether others than this machine may reach an address."""
    return not ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _reachable(address: str) -> str:
    """Return what a client calls an address: this machine's name where it is all of its addresses."""
    return socket.gethostname() if ipaddress.ip_address(address).is_unspecified else address
