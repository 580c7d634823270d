"""An experiment made ready: its circuit, its die, its data, a trainer for each estimator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuitsim.chip import Chip, fabricate
from circuitsim.chip.substrate import Substrate
from circuitsim.compiler import compile_network
from circuitsim.data import DataSet, load_csv, load_data
from circuitsim.devices import DeviceCard, merged_cards
from circuitsim.errors import CircuitsimError, DeviceError, NetlistError, SpecError
from circuitsim.instrument.opening import open_substrate
from circuitsim.learning import Cost, Estimator, Samples, Trainer
from circuitsim.learning.in_the_loop import SubstrateTrainer
from circuitsim.netlist import Netlist
from circuitsim.netlist.files import netlist_document
from circuitsim.netlist.roles import with_roles
from circuitsim.network import NetworkSpec, load_network, parse_document
from circuitsim.network.spec import SynapseSpec, WiresSpec
from circuitsim.record import provenance
from circuitsim.solver import Plan, build_plan
from circuitsim.study.experiment import DataSpec, ExperimentSpec
from circuitsim.study.stages import NoiseAwareTrainer, StagedTrainer

__all__ = ["Bench", "load_samples", "make_bench", "plain_document", "prepare"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """An experiment made ready: the die, its plan, the data, and a trainer for each estimator."""

    experiment: ExperimentSpec
    circuit: NetworkSpec | Netlist
    """The network description, or the deck as it was drawn."""
    card: DeviceCard
    chip: Chip
    plan: Plan
    cost: Cost
    data: DataSet
    software: Plan
    """The circuit as software knows it: without the wires of the card."""
    folder: Path
    """What files that are named later are relative to."""
    substrate: Substrate | None = None
    """What the experiment learns on, while it is connected."""

    @contextmanager
    def connected(self, substrate: Substrate | str | None = None) -> Iterator[Bench]:
        """Give the bench with its substrate open: the experiment's, or else the one given, or an address.

        Raises:
            SpecError: no such address.
            InstrumentError: nothing answers, or another circuit does.
        """
        if isinstance(substrate, str):
            yield from self._at(substrate)
            return
        spec = self.experiment.substrate
        if substrate is not None:
            yield replace(self, substrate=substrate)
            return
        if spec is None:
            yield self
            return
        experiment = self.experiment
        opened = open_substrate(
            spec.address,
            self.plan.netlist,
            self.cost,
            self.card,
            die=self.chip.seed,
            folder=self.folder,
            timeout=spec.timeout,
            readout=experiment.readout,
            programming=experiment.programming,
            update=experiment.update,
            settings=experiment.solver.settings(),
        )
        try:
            yield replace(self, substrate=opened)
        finally:
            opened.close()

    def _at(self, address: str) -> Iterator[Bench]:
        document = self.experiment.model_dump(mode="json", by_alias=True)
        document["substrate"] = (document["substrate"] or {}) | {"address": address}
        elsewhere = replace(self, experiment=parse_document(ExperimentSpec, document))
        with elsewhere.connected() as bench:
            yield bench

    @property
    def estimators(self) -> dict[str, Estimator]:
        """Label -> estimator, in the order of the file; a repeated label gets a number."""
        found: dict[str, Estimator] = {}
        for spec in self.experiment.estimators:
            estimator = spec.build()
            name, number = estimator.label, 1
            while name in found:
                number += 1
                name = f"{estimator.label}-{number}"
            found[name] = estimator
        return found

    def trainer(self, estimator: Estimator) -> Trainer | StagedTrainer | SubstrateTrainer:
        """Return a trainer at the start: the die as fabricated, its conductances written to it."""
        use, epochs = self.experiment.use, self.experiment.training.epochs
        if use.kind == "in_situ" and self.substrate is not None:
            return self._on_substrate(estimator, self.substrate, epochs)
        if use.kind == "in_situ":
            return self._trainer(estimator, self._written(self.chip), epochs, update=self.experiment.update)
        late = self.experiment.update.model_copy(update={"start": "as_written"})
        die: Trainer | SubstrateTrainer
        if self.substrate is not None:
            die = self._on_substrate(estimator, self.substrate, use.fine_tune)
        else:
            die = self._trainer(
                estimator, self.chip, use.fine_tune, update=late, written=True, age=self.experiment.age
            )
        first: Trainer
        if use.kind == "carried":
            other = fabricate(self.plan.netlist, self.card, seed=use.from_die or 0)
            first = self._trainer(estimator, self._written(other), epochs, update=self.experiment.update)
        else:
            ideal = fabricate(self.software.netlist, seed=self.chip.seed)
            first = self._trainer(estimator, ideal, epochs, plan=self.software)
            if use.kind == "noise_aware":
                first = NoiseAwareTrainer.of(first, self.card, noise=use.noise)
        return StagedTrainer(
            first=first,
            die=die,
            epochs=epochs,
            fine_tune=use.fine_tune,
            programming=self.experiment.programming,
        )

    @property
    def epochs(self) -> int:
        """Epochs of each trainer: a transfer is one of its own."""
        use, epochs = self.experiment.use, self.experiment.training.epochs
        return epochs if use.kind == "in_situ" else epochs + 1 + use.fine_tune

    def _written(self, chip: Chip) -> Chip:
        """Return a die whose conductances have been written, where its card says what that does."""
        crossbar = self.card.crossbar
        if crossbar.programming is None and crossbar.levels is None:
            return chip
        return self.experiment.programming.apply(chip, chip.target)

    def _on_substrate(self, estimator: Estimator, substrate: Substrate, epochs: int) -> SubstrateTrainer:
        training, spec = self.experiment.training, self.experiment.substrate
        return SubstrateTrainer(
            substrate=substrate,
            model=fabricate(self.plan.netlist, seed=self.chip.seed),
            plan=self.plan,
            cost=self.cost,
            estimator=estimator,
            optimiser=training.optimiser,
            train=Samples(inputs=self.data.train_inputs, labels=self.data.train_labels),
            test=Samples(inputs=self.data.test_inputs, labels=self.data.test_labels),
            classes=self.data.classes,
            batch=training.batch,
            epochs=epochs,
            seed=self.experiment.seed,
            probe=training.probe,
            averaging=self.experiment.readout.averaging,
            updates="host" if spec is None else spec.updates,
            age=self.experiment.age,
            settings=self.experiment.solver.settings(),
        )

    def _trainer(
        self,
        estimator: Estimator,
        chip: Chip,
        epochs: int,
        *,
        plan: Plan | None = None,
        update: Any = None,
        written: bool | None = None,
        age: float | None = None,
    ) -> Trainer:
        training = self.experiment.training
        return Trainer(
            plan=plan or self.plan,
            chip=chip,
            cost=self.cost,
            estimator=estimator,
            optimiser=training.optimiser,
            train=Samples(inputs=self.data.train_inputs, labels=self.data.train_labels),
            test=Samples(inputs=self.data.test_inputs, labels=self.data.test_labels),
            classes=self.data.classes,
            batch=training.batch,
            epochs=epochs,
            seed=self.experiment.seed,
            probe=training.probe,
            settings=self.experiment.solver.settings(),
            update=update,
            readout=self.experiment.readout,
            age=self.experiment.age if age is None else age,
            written=not chip.matched if written is None else written,
        )

    @property
    def network(self) -> NetworkSpec | None:
        """The network description; None where the circuit was drawn as a deck."""
        return self.circuit if isinstance(self.circuit, NetworkSpec) else None

    def header(self) -> dict[str, Any]:
        """Return what a record must hold to repeat the run, as plain JSON."""
        shape = self.data.image_shape
        network, deck = self.network, None
        if isinstance(self.circuit, Netlist):
            deck = plain_document(netlist_document(self.circuit))
        return {
            "kind": "training",
            "name": self.experiment.name,
            "seed": self.experiment.seed,
            "experiment": self.experiment.model_dump(mode="json", by_alias=True),
            "network": None if network is None else network.model_dump(mode="json", by_alias=True),
            "deck": deck,
            "data": {
                "name": self.data.name,
                "classes": self.data.classes,
                "class_names": list(self.data.class_names),
                "held_out": self.data.held_out,
                "digest": self.data.digest,
            },
            "card": self.card.model_dump(mode="json", by_alias=True),
            "digest": self.plan.netlist.digest,
            "substrate": None if self.substrate is None else self.substrate.capabilities.identity,
            "figures": {"arm": self.headline, "image_shape": list(shape) if shape else None},
            "provenance": provenance(),
        }

    @property
    def headline(self) -> str:
        """The estimator whose result stands for the run: corrected centred, or else the first."""
        names = list(self.estimators)
        return "corrected-centred" if "corrected-centred" in names else names[0]


def prepare(experiment: ExperimentSpec, *, folder: Path, file: object = None) -> Bench:
    """Load what an experiment names, compile it and fabricate its die.

    Raises:
        SpecError: a file is missing or wrong, or network and data do not fit each other.
    """
    for field in ("network", "deck"):
        name = getattr(experiment, field)
        if name is not None and not (folder / name).exists():
            raise SpecError(
                "names a file that does not exist",
                file=file,
                field=field,
                value=name,
                remedy="Paths are relative to the experiment's own folder.",
            )
    circuit: NetworkSpec | Netlist
    if experiment.deck is not None:
        from circuitsim.spice.reader import read_deck

        circuit = read_deck(folder / experiment.deck).netlist
    else:
        assert experiment.network is not None
        circuit = load_network(folder / experiment.network)
    try:
        card = merged_cards(experiment.cards, folder)
    except SpecError as error:
        if error.file is not None:
            raise
        raise _of_experiment(error, file, f"cards.{error.field}" if error.field else "cards") from error
    try:
        data = load_samples(experiment.data, folder)
    except SpecError as error:
        if error.file is not None:
            raise
        raise _of_experiment(error, file, error.field) from error
    return make_bench(experiment, circuit, card, data, file=file, folder=folder)


def load_samples(spec: DataSpec, folder: Path) -> DataSet:
    """Load the samples of an experiment, from its set or from a file in ``folder``."""
    if spec.file is None:
        data = load_data(spec.set or "", **spec.options())
    else:
        data = load_csv(
            folder / spec.file,
            inputs=spec.inputs or (),
            targets=spec.targets,
            label=spec.label,
            **spec.options(),
        )
    return data.scaled(spec.target_gain)


def make_bench(
    experiment: ExperimentSpec,
    circuit: NetworkSpec | Netlist,
    card: DeviceCard,
    data: DataSet,
    *,
    file: object,
    folder: Path | None = None,
) -> Bench:
    """Make an experiment ready whose parts are read already; ``folder`` is where it lies.

    Raises:
        SpecError: network, data, cards and experiment do not fit each other.
        DeviceError: something is outside the range in which a card holds.
    """
    try:
        bench = _made(experiment, circuit, card, data, file=file)
        return bench if folder is None else replace(bench, folder=folder)
    except DeviceError as error:
        if error.file is not None or error.value is None:
            raise
        raise DeviceError(
            error.rule,
            file=file,
            object=error.object,
            field=error.field,
            value=error.value,
            remedy=error.remedy,
        ) from error


def _made(
    experiment: ExperimentSpec,
    circuit: NetworkSpec | Netlist,
    card: DeviceCard,
    data: DataSet,
    *,
    file: object,
) -> Bench:
    if card.crossbar.nonlinearity is not None:
        raise SpecError(
            "is for single operating points: learning knows conductances only",
            file=file,
            field="cards.crossbar.nonlinearity",
            value=card.crossbar.nonlinearity,
            remedy="Set it to null; nonlinear_netlist() gives the die with its bent devices.",
        )
    drawn = _as_carded(experiment, circuit, card, file=file)
    netlist, cost = _circuit(experiment, drawn, data, file=file)
    software = netlist
    if isinstance(drawn, NetworkSpec) and (card.wire is not None or card.amplifier.output_resistance):
        wired = _with_wires(drawn, card, file=file)
        netlist = compile_network(wired, seed=experiment.seed)
    elif isinstance(drawn, Netlist):
        for field, given in (
            ("wire", card.wire),
            ("amplifier.output_resistance", card.amplifier.output_resistance),
        ):
            if given:
                raise SpecError("is for networks: a deck draws its own", file=file, field=f"cards.{field}")
    rates = experiment.training.optimiser.rates
    known = [crossbar.name for crossbar in netlist.trainable]
    for name in rates:
        if name not in known:
            raise SpecError(
                "is not a trainable crossbar",
                file=file,
                field="training.optimiser.rates",
                value=name,
                remedy=f"Crossbars: {', '.join(known)}.",
            )
    die = experiment.seed if experiment.die is None else experiment.die
    plan = build_plan(netlist)
    bench = Bench(
        experiment=experiment,
        circuit=circuit,
        card=card,
        chip=fabricate(netlist, card, seed=die),
        plan=plan,
        cost=cost,
        data=data,
        software=plan if software is netlist else build_plan(software),
        folder=Path(),
    )
    if experiment.update.zero_shift and experiment.use.kind != "in_situ":
        raise SpecError(
            "is for learning in situ: a transfer has references of its own",
            file=file,
            field="update.zero_shift",
            value=True,
        )
    experiment.update.chosen(card)
    # An age beyond what the card was measured for shows now, not after the first epoch.
    bench.chip.aged(experiment.age)
    return bench


def _as_carded(
    experiment: ExperimentSpec, circuit: NetworkSpec | Netlist, card: DeviceCard, *, file: object
) -> NetworkSpec | Netlist:
    """Return the circuit at the impedance level of the card, if that is asked for."""
    if experiment.window == "network":
        return circuit
    remedy = None
    if not isinstance(circuit, NetworkSpec):
        rule = "is for networks: a deck has its own conductances"
    elif card.crossbar.range is None:
        rule, remedy = f"card {card.name} has no conductance range", "Use window: network."
    else:
        return circuit.scaled_to(*card.crossbar.range)
    raise SpecError(rule, file=file, field="window", value="card", remedy=remedy)


def _with_wires(network: NetworkSpec, card: DeviceCard, *, file: object) -> NetworkSpec:
    """Return the network with the card's wires on every synapse that has none of its own."""
    wire, output = card.wire, card.amplifier.output_resistance
    if wire is None:
        if any(synapse.wires is None for synapse in network.synapses):
            raise SpecError(
                "an output resistance needs word lines that are wires",
                file=file,
                field="cards.amplifier.output_resistance",
                value=output,
                remedy="Add a wire section to the cards, or wires to the synapses.",
            )
        wires = None
    else:
        wires = WiresSpec(resistance=wire.per_segment(card=card.name), driver=wire.driver, sense=wire.sense)

    def own(synapse: SynapseSpec) -> WiresSpec:
        # Between the nodes of two layers there is no amplifier.
        passive = synapse.kind == "resistive" and synapse.source in network.layers
        more = 0.0 if passive else output
        found = wires if synapse.wires is None else synapse.wires
        assert found is not None
        return found.model_copy(update={"driver": found.driver + more})

    synapses = [synapse.model_copy(update={"wires": own(synapse)}) for synapse in network.synapses]
    return network.model_copy(update={"synapses": synapses})


def _circuit(
    experiment: ExperimentSpec, circuit: NetworkSpec | Netlist, data: DataSet, *, file: object
) -> tuple[Netlist, Cost]:
    """Return the netlist with its ports, and the cost; both must fit the data."""
    if isinstance(circuit, NetworkSpec):
        inputs, outputs, spec = circuit.input_size, circuit.output_size, circuit.cost
        name, where = circuit.name, "network's "
    else:
        roles = experiment.roles
        assert roles is not None
        inputs, outputs, spec = len(roles.inputs.sources), len(roles.outputs), roles.cost
        name, where = "roles", "deck's "
    one_output = data.classes == 2 and outputs == 1 and spec.kind == "squared_error"
    for what, size, needed in (
        ("inputs", inputs, data.train_inputs.shape[1]),
        ("outputs", outputs, 1 if one_output else data.outputs),
    ):
        if size != needed:
            raise SpecError(
                f"data set {data.name} needs {needed} {what}",
                file=file,
                object=name,
                field=what,
                value=size,
                remedy=f"Change the {where}{what} or the data set.",
            )
    if data.classes is None and spec.kind != "squared_error":
        raise SpecError(
            f"data set {data.name} has wanted outputs, no classes",
            file=file,
            object=name,
            field="cost.kind",
            value=spec.kind,
            remedy="Use squared_error.",
        )
    cost = Cost.of_spec(spec, one_output=one_output)
    if isinstance(circuit, NetworkSpec):
        return compile_network(circuit, seed=experiment.seed), cost
    assert roles is not None
    try:
        return with_roles(circuit, roles.roles(), seed=experiment.seed, circuit=experiment.deck), cost
    except NetlistError as error:
        if error.object:
            raise NetlistError(str(error), file=file) from error
        field = f"roles.{error.field}" if error.field else "roles"
        raise _of_experiment(error, file, field) from error


def _of_experiment(error: CircuitsimError, file: object, field: str | None) -> SpecError:
    """Return an error about what an experiment names as one about the experiment's field."""
    if error.value is None:
        return SpecError(error.rule, file=file, field=field, remedy=error.remedy)
    return SpecError(error.rule, file=file, field=field, value=error.value, remedy=error.remedy)


def plain_document(document: Any) -> Any:
    """Return a netlist's document with its infinities by name, which JSON lacks and its reader takes."""
    if isinstance(document, dict):
        return {key: plain_document(value) for key, value in document.items()}
    if isinstance(document, list):
        return [plain_document(value) for value in document]
    return repr(document) if document in (math.inf, -math.inf) else document
