"""Bad input: one clear error, its exit code, nothing on standard output, earlier files untouched."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import PROGRAM, Command, Outcome

GIVEN = ("--input", "1,2,3")
NUDGED = (*GIVEN, "--phase", "nudged")

NETWORKS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "misspelt key": (
        {"layers.hidden.neurone": {}},
        ("layers.hidden.neurone: unknown key", "Did you mean `neuron`?"),
    ),
    "unknown neuron": (
        {"layers.hidden.neuron": {"kind": "spiking"}},
        ("layers.hidden.neuron", "spiking", "tanh"),
    ),
    "negative conductance": (
        {"conductance.min": -1e-6},
        ("conductance.min", "greater than or equal to 0", "-1e-06"),
    ),
    "NaN conductance": ({"conductance.max": float("nan")}, ("conductance.max: must be finite",)),
    "window upside down": ({"conductance.min": "1m"}, ("min must not exceed max: 0.001 S > 0.0001 S",)),
    "wrong suffix": ({"conductance.max": "1 apple"}, ("conductance.max", "unknown suffix", "1 apple")),
    "mask of another size": (
        {"synapses.0.connectivity": {"mask": [[1, 0], [0, 1]]}},
        ("synapses.0.connectivity.mask: must be 3 rows of 4",),
    ),
    "no outputs": ({"output": None}, ("output: is required",)),
    "outputs of no layer": (
        {"output.layer": "exit"},
        ("output.layer: is not a layer", "exit", "hidden, out"),
    ),
    "synapse from nowhere": ({"synapses.0.from": "y"}, ("synapses.0.from", "'y'", "Known: x, hidden, out")),
    "layer that floats": (
        {"synapses": [{"from": "x", "to": "hidden"}]},
        ("ground from node out[0], out[1]",),
    ),
    "no neurons": ({"layers.hidden.size": 0}, ("layers.hidden.size", "greater than or equal to 1")),
    "size as text": ({"layers.hidden.size": "4"}, ("layers.hidden.size", "'4'")),
    "huge size": ({"layers.hidden.size": 10**40}, ("layers.hidden.size", "1000000")),
    "huge number": ({"conductance.max": 10**400}, ("conductance.max: must be finite",)),
    "empty mapping": ({"layers": {}}, ("layers", "at least one layer is needed")),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_breaks_a_rule(case: str, call: Command, changed: Callable[..., Path]) -> None:
    changes, fragments = NETWORKS[case]
    path = changed("small", changes)
    for command in ("compile", "solve", "gradcheck"):
        call(command, path, "--json").refuses(str(path), *fragments)


def test_every_problem_of_a_network_is_listed_once(call: Command, changed: Callable[..., Path]) -> None:
    path = changed("small", {"conductance.min": -1, "layers.hidden.neurone": {}, "cost.kind": "guess"})
    ended = call("compile", path)
    ended.refuses("3 problems:", "conductance.min", "layers.hidden.neurone", "guess")
    assert ended.err.count(str(path)) == 3


NETLIST = {
    "format": "circuitsim-netlist/1",
    "nodes": ["a", "b"],
    "elements": {
        "resistor": {"name": ["R1", "R2"], "pos": ["a", "b"], "neg": ["0", "a"], "conductance": [-1.0, 1e-3]},
        "isource": {"name": ["I1"], "pos": ["a"], "neg": ["0"], "current": [float("nan")]},
    },
}


def test_every_problem_of_a_netlist_is_listed_under_one_file_name(folder: Path, call: Command) -> None:
    Path("bad.yaml").write_text(yaml.safe_dump(NETLIST))
    for command in ("compile", "solve"):
        ended = call(command, "bad.yaml")
        ended.refuses("bad.yaml: 2 problems:", "- resistor R1.conductance: must be", "- isource I1.current")
        assert ended.err.count("bad.yaml") == 1


@pytest.mark.parametrize(
    ("edit", "fragments"),
    [
        ({"nodes": ["a", "b", "c"]}, ("ground from node c", "a leak")),
        ({"elements": {"resistance": {}}}, ("elements.resistance: unknown key", "resistor")),
        ({"format": "circuitsim-netlist/9"}, ("circuitsim-netlist/1",)),
        ({"outputs": {"pos": ["zz"], "neg": ["0"]}}, ()),
        ({"elements": []}, ()),
    ],
)
def test_a_netlist_that_breaks_a_rule(
    edit: dict[str, Any], fragments: tuple[str, ...], folder: Path, call: Command
) -> None:
    good = {
        **NETLIST,
        "elements": {
            "resistor": {"name": ["R1", "R2"], "pos": ["a", "b"], "neg": ["0", "a"], "conductance": [1, 1]}
        },
    }
    Path("good.yaml").write_text(yaml.safe_dump(good))
    assert call("solve", "good.yaml").code == 0
    Path("bad.yaml").write_text(yaml.safe_dump({**good, **edit}))
    ended = call("solve", "bad.yaml")
    ended.refuses("bad.yaml: ", *fragments)
    assert ended.err.count("bad.yaml") == 1


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (("--input", "1,2"), ("--input: this circuit has 3 inputs (got 2)",)),
        (("--input", "1,x,3"), ("--input[1]: is not a number", "'x'")),
        (("--input", "1,nan,3"), ("--input[1]", "nan")),
        (("--input", "1,1e400,3"), ("--input[1]: must be finite",)),
        (("--input", ""), ("--input",)),
        (("--input", "missing.csv"), ("missing.csv: --input: cannot be read: No such file",)),
        (("--input", "nan.npy"), ("nan.npy: --input[1]: must be finite (got nan)",)),
        (("--input", "nan.txt"), ("nan.txt: --input[2]", "'NaN'")),
        (("--input", "empty.npy"), ("empty.npy: --input: does not hold numbers",)),
        (("--input", "empty.txt"), ("empty.txt: --input",)),
        (("--input", "complex.npy"), ("complex.npy: --input: must hold one array of real numbers",)),
        (("--input", "objects.npy"), ("objects.npy: --input: does not hold numbers",)),
        ((), ("this circuit has 3 inputs", "--input", "--sample")),
        (("--sample", "0"), ("--sample: a digit has 64 pixels, this circuit 3 inputs",)),
        ((*GIVEN, "--sample", "0"), ("give --input or --sample, not both",)),
        ((*GIVEN, "--target", "1"), ("--target: is only for the nudged, corrected and dyadic phases",)),
        (NUDGED, ("--target: is needed for this phase", "class 0 to 1")),
        ((*NUDGED, "--target", "2"), ("--target: a class is 0 to 1 (got 2.0)",)),
        ((*NUDGED, "--target", "-1"), ("--target: a class is 0 to 1",)),
        ((*NUDGED, "--target", "0.5"), ("--target: a class is 0 to 1",)),
        ((*NUDGED, "--target", "cat"), ("--target[0]: is not a number (got 'cat')",)),
        ((*NUDGED, "--target", "1,2,3"), ("--target: this circuit has 2 outputs (got 3)",)),
        ((*NUDGED, "--target", "1", "--beta", "nan"), ("--beta: must be finite",)),
        ((*NUDGED, "--target", "1", "--beta", "inf"), ("--beta: must be finite",)),
        ((*GIVEN, "--phase", "frozen"), ("--phase", "'frozen'", "free, nudged, corrected, dyadic")),
        ((*GIVEN, "--method", "fast"), ("--method", "'fast'", "auto, general, layered")),
    ],
)
def test_an_option_of_solve_that_does_not_fit(
    args: tuple[str, ...], fragments: tuple[str, ...], folder: Path, call: Command
) -> None:
    np.save("nan.npy", [0.0, np.nan, 1.0])
    np.save("complex.npy", np.ones(3, dtype=complex))
    np.save("objects.npy", np.array([None, 1, 2], dtype=object), allow_pickle=True)
    Path("empty.npy").touch()
    Path("empty.txt").touch()
    Path("nan.txt").write_text("0 1 NaN\n")
    call("solve", "small.yaml", *args).refuses(*fragments)
    call("solve", "small.yaml", *args, "--json").refuses(*fragments)


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (("solve", "digits16.yaml", "--sample", 359), ("--sample: must be 0 to 358 (got 359)",)),
        (("solve", "divider.yaml", "--phase", "nudged", "--target", 0), ("--phase: needs a cost", "network")),
        (("solve", "divider.yaml", "--input", "1"), ("this circuit has 0 inputs (got 1)",)),
        (("solve", "quick.yaml"), ("quick.yaml: is an experiment, not a network description", "train")),
        (("solve", "record.h5"), ("record.h5: not a record",)),
        (
            ("compile", "small.yaml", "--format", "verilog", "-o", "x"),
            ("--format", "'verilog'", "yaml, spice"),
        ),
        (("compile", "small.yaml", "--format", "spice"), ("--format: needs a file", "-o")),
        (("compile", "small.yaml", "-o", "missing/x.yaml"), ("missing/x.yaml: cannot be written: No such",)),
        (("compile", "small.yaml", "-o", "there"), ("there: cannot be written: Is a directory",)),
        (("compile", "small.yaml", "-o", "/dev/full"), ("/dev/full: cannot be written: No space left",)),
        (("compile", "small.yaml", "-o", "small.yaml"), ("--output: is the file to compile",)),
        (("compile", "small.yaml", "-o", "small.yaml/x"), ("small.yaml/x: cannot be written",)),
        (("gradcheck", "divider.yaml"), ("divider.yaml: is a netlist", "network description")),
        (
            ("gradcheck", "small.yaml", "--beta", 0.1, "--beta", -0.1),
            ("--beta: must be greater", "(got -0.1)"),
        ),
        (("gradcheck", "small.yaml", "--beta", "nan"), ("--beta: must be greater", "nan")),
        (("gradcheck", "small.yaml", "--method", "best"), ("--method", "'best'")),
        (("gradcheck", "fixed.yaml"), ("fixed.yaml: has no trainable crossbar",)),
        (("train", "small.yaml"), ("small.yaml: is a network description, not an experiment", "solve")),
        (("train", "divider.yaml"), ("divider.yaml: is a netlist, not an experiment",)),
        (("train", "missing.yaml"), ("missing.yaml: cannot be read: No such file",)),
        (("train", "missing.h5"), ("missing.h5: cannot read the record",)),
        (("train", "missing.h5", "--resume"), ("missing.h5: cannot read the record",)),
        (("train", "quick.yaml", "--resume", "-o", "missing.h5"), ("missing.h5: cannot read the record",)),
        (("train", "record.h5"), ("record.h5: is a record", "--resume", "circuitsim show")),
        (("train", "record.h5", "--resume"), ("record.h5: not a record",)),
        (("train", "record.h5", "--resume", "--seed", 3), ("--seed: a record has its own",)),
        (("train", "quick.yaml", "-o", "result"), ("--output: a record's name ends in .h5",)),
        (("train", "quick.yaml", "-o", "missing/x.h5"), ("missing: the folder does not exist",)),
        (("train", "quick.yaml", "-o", "record.h5"), ("record.h5: a file of this name exists",)),
        (("train", "quick.yaml", "--overwrite"), ("--overwrite: needs -o",)),
        (("show", "small.yaml"), ("small.yaml: not a record",)),
        (("show", "there"), ("there: cannot read the record: it is a folder",)),
        (("show", "missing.h5"), ("missing.h5: cannot read the record: no such file",)),
        (("runs", "missing"), ("missing: cannot list the folder",)),
        (("runs", "small.yaml"), ("small.yaml: is not a folder",)),
        (("schema", "netlist"), ("kind", "'netlist'", "network, experiment, card")),
    ],
)
def test_a_command_that_cannot_do_what_is_asked(
    args: tuple[object, ...], fragments: tuple[str, ...], folder: Path, call: Command
) -> None:
    (folder / "there").mkdir()
    (folder / "record.h5").write_text("text")
    fixed = yaml.safe_load(Path("small.yaml").read_text())
    fixed["layers"]["hidden"]["bias"] = {"trainable": False}
    fixed["synapses"] = [{**synapse, "trainable": False} for synapse in fixed["synapses"]]
    (folder / "fixed.yaml").write_text(yaml.safe_dump(fixed))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    call(*args).refuses(*fragments)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


EXPERIMENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "missing network": (
        {"network": "gone.yaml"},
        ("network: names a file that does not exist", "'gone.yaml'", "relative to"),
    ),
    "missing card": (
        {"cards": "gone-card.yaml"},
        ("cards: is neither a file nor the name of a card", "'gone-card.yaml'", "Cards: ecram-li-tang-2018"),
    ),
    "unknown estimator": ({"estimators.0.kind": "spsa"}, ("estimators.0", "'spsa'", "asymep", "dyadic_bp")),
    "no estimator": ({"estimators": []}, ("estimators",)),
    "negative beta": ({"estimators.0.beta": -1}, ("estimators.0.beta", "greater than 0")),
    "rates of no crossbar": (
        {"training.optimiser": {"rates": {"hidden": 2}}},
        ("training.optimiser.rates", "'hidden'", "pixels-hidden, hidden-output"),
    ),
    "network of other inputs": ({"network": "small.yaml"}, ("small.inputs", "needs 64 inputs", "got 3")),
    "name that is a path": ({"name": "../up"}, ("name", "../up")),
    "epochs of zero": ({"training.epochs": 0}, ("training.epochs",)),
    "misspelt key": ({"training.epoch": 3}, ("training.epoch: unknown key", "Did you mean `epochs`?")),
}


@pytest.mark.parametrize("case", EXPERIMENTS)
def test_an_experiment_that_breaks_a_rule(
    case: str, folder: Path, call: Command, changed: Callable[..., Path]
) -> None:
    changes, fragments = EXPERIMENTS[case]
    path = changed("quick", changes)
    call("train", path, "--json").refuses(*fragments)
    assert not list(folder.glob("*.h5"))


@pytest.mark.parametrize("command", ["compile", "solve", "gradcheck", "train"])
@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "is empty"),
        (b"- a\n- b\n", "must hold keys and values"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00\x01", "not a text file"),
        (b"name: \x00\n", "is not YAML"),
        (b"name: [1, 2\n", "is not YAML"),
        (b"name: a\nname: b\n", "given twice"),
        (b"[" * 5000, "YAML"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_a_file_that_is_no_description(
    command: str, content: bytes | None, fragment: str, folder: Path, call: Command
) -> None:
    path = folder / "odd.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    call(command, "odd.yaml").refuses("odd.yaml: ", fragment)


def test_a_file_that_cannot_be_read(folder: Path, call: Command) -> None:
    path = folder / "small.yaml"
    path.chmod(0)
    if os.access(path, os.R_OK):
        # Root may read every file, but not what lies at address zero of this process.
        path = Path("/proc/self/mem")
    for command in ("compile", "solve", "gradcheck", "train"):
        call(command, path).refuses(f"{path}: cannot be read: ")


def test_a_diverging_network_exits_with_three(
    folder: Path, call: Command, installed: Callable[..., Outcome]
) -> None:
    # A diode cannot carry this current backwards, and there is no other way for it.
    squeeze = {
        "format": "circuitsim-netlist/1",
        "title": "squeeze",
        "nodes": ["a"],
        "elements": {
            "diode": {
                "name": ["D1"],
                "pos": ["a"],
                "neg": ["0"],
                "saturation_current": [1e-12],
                "slope_voltage": [0.025],
                "parallel_conductance": [0.0],
            },
            "isource": {"name": ["I1"], "pos": ["a"], "neg": ["0"], "current": [1e-3]},
        },
    }
    Path("squeeze.yaml").write_text(yaml.safe_dump(squeeze))
    call("solve", "squeeze.yaml", "--json").refuses("squeeze", "did not converge", code=3)
    installed("solve", "squeeze.yaml", cwd=folder).refuses("did not converge", code=3)


def test_training_that_diverges_exits_with_three_and_keeps_its_record(
    folder: Path, call: Command, changed: Callable[..., Path]
) -> None:
    path = changed("quick", {"solver": {"max_iterations": 1}, "network": "loops.yaml"})
    loops = yaml.safe_load(Path("digits16.yaml").read_text())
    loops["synapses"].append({"from": "output", "to": "hidden"})
    Path("loops.yaml").write_text(yaml.safe_dump(loops))
    ended = call("train", path)
    assert ended.code == 3
    assert ended.out == ""
    assert "quick-s5.h5: " in ended.err
    assert "epoch 1" in ended.err
    assert "Lower the optimiser's step" in ended.err
    assert call("runs", ".", "--json").document[0]["epochs"] == 0
    assert call("show", "quick-s5.h5", "--no-figures", "--json").document["finished"] is False


def test_a_record_of_a_newer_schema(folder: Path, call: Command) -> None:
    assert call("train", "quick.yaml", "--no-figures").code == 0
    import h5py

    with h5py.File("quick-s5.h5", "r+") as file:
        file.attrs["schema_version"] = 99
    call("show", "quick-s5.h5", "--json").refuses("schema_version", "99", "Upgrade circuitsim")
    call("train", "quick-s5.h5", "--resume").refuses("schema_version", "99", "Upgrade circuitsim")
    assert "newer" in call("runs", ".", "--json").document[0]["problem"]


def test_a_corrupt_record(folder: Path, call: Command) -> None:
    assert call("train", "quick.yaml", "--no-figures").code == 0
    whole = Path("quick-s5.h5").read_bytes()
    Path("quick-s5.h5").write_bytes(whole[: len(whole) // 2])
    call("show", "quick-s5.h5").refuses("quick-s5.h5: the file is cut short")
    call("train", "quick-s5.h5", "--resume").refuses("quick-s5.h5: the file is cut short")
    Path("quick-s5.h5").write_bytes(b"")
    call("show", "quick-s5.h5").refuses("quick-s5.h5: the file is empty")


def small_files() -> None:
    """Let this process write no file longer than 2 KB: what a full disk looks like."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))


def test_a_full_disk_leaves_earlier_files_as_they_were(
    folder: Path, installed: Callable[..., Outcome]
) -> None:
    Path("net.yaml").write_text("earlier")
    Path("run.h5").write_text("earlier")
    full: dict[str, Any] = {"cwd": folder, "preexec_fn": small_files}
    installed("compile", "digits16.yaml", "-o", "net.yaml", **full).refuses("net.yaml: cannot be written")
    installed("train", "quick.yaml", "-o", "run.h5", "--overwrite", **full).refuses(
        "run.h5", "no space is left"
    )
    assert Path("net.yaml").read_text() == Path("run.h5").read_text() == "earlier"
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []


def test_standard_output_that_is_full_or_closed(folder: Path, installed: Callable[..., Outcome]) -> None:
    with open("/dev/full", "w") as full:
        for args in (("schema",), ("compile", "small.yaml")):
            done = subprocess.run(
                [PROGRAM, *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
            assert done.returncode == 2
            assert done.stderr == "error: output: No space left on device\n"
    for args in (("schema",), ("compile", "small.yaml")):
        reader, writer = os.pipe()
        os.close(reader)
        closed = subprocess.run(
            [PROGRAM, *args], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writer)
        assert closed.returncode == 1
        assert closed.stderr == ""


def test_errors_of_a_real_process_go_to_standard_error(
    folder: Path, installed: Callable[..., Outcome]
) -> None:
    installed("solve", "small.yaml", "--input", "1,2", "--json", cwd=folder).refuses("3 inputs (got 2)")
    misused = installed("solve", "small.yaml", "--sample", "-1", cwd=folder)
    assert misused.code == 2
    assert misused.out == ""
    assert "--sample" in misused.err
    assert "Traceback" not in misused.err
