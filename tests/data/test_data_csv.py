"""Samples from CSV files: what is read, and what is said about files that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitsim.data import load_csv
from circuitsim.errors import CircuitsimError, SpecError

LAB = """# bench 3, sweep of Tuesday
bias, temperature, out, state
100m, 21.5, 1.2m, low
-0.2, 22, 3e-3, high
# probe slipped here

3k, 22.5, 4u, low
0, 23, -5, off
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "lab.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def everything(path: Path, **columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels in the order of the file."""
    data = load_csv(path, test_fraction=0, **columns)
    assert not data.held_out
    return data.train_inputs, data.train_labels


def test_columns_by_name_with_suffixes_and_comments(tmp_path: Path) -> None:
    path = written(tmp_path, LAB)
    inputs, wanted = everything(path, inputs=["temperature", "bias"], targets=["out"])
    np.testing.assert_array_equal(inputs, [[21.5, 0.1], [22, -0.2], [22.5, 3000], [23, 0]])
    np.testing.assert_array_equal(wanted, [[1.2e-3], [3e-3], [4e-6], [-5]])


def test_labels_of_any_text(tmp_path: Path) -> None:
    path = written(tmp_path, LAB)
    data = load_csv(path, inputs=["bias"], label="state", test_fraction=0)
    assert (data.name, data.classes, data.outputs, data.class_names) == ("lab", 3, 3, ("high", "low", "off"))
    np.testing.assert_array_equal(data.train_labels, [1, 0, 1, 2])


def test_numbered_labels_keep_the_order_of_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "x,class\n1,10\n2,9\n3,-1\n4,none\n5,9\n")
    data = load_csv(path, inputs=["x"], label="class", test_fraction=0)
    assert data.class_names == ("-1", "9", "10", "none")
    np.testing.assert_array_equal(data.train_labels, [2, 1, 0, 3, 1])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_files_as_spreadsheets_write_them(tmp_path: Path, delimiter: str, ending: str, mark: bytes) -> None:
    lines = [delimiter.join(row) for row in (["a", '"b ""quoted"""', "y"], ["1", "2", "3"], ["4", "5", "6"])]
    path = written(tmp_path, mark + ending.join(lines).encode())
    inputs, wanted = everything(path, inputs=["a", 'b "quoted"'], targets=["y"])
    np.testing.assert_array_equal(np.column_stack([inputs, wanted]), [[1, 2, 3], [4, 5, 6]])


def test_some_are_held_out(tmp_path: Path) -> None:
    path = written(tmp_path, "x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(50)))
    data = load_csv(path, inputs=["x"], targets=["y"], test_fraction=0.3)
    again = load_csv(path, inputs=["x"], targets=["y"], test_fraction=0.3)
    other = load_csv(path, inputs=["x"], targets=["y"], test_fraction=0.3, split_seed=1)
    assert data.held_out
    assert (len(data.train_inputs), len(data.test_inputs)) == (35, 15)
    together = np.concatenate([data.train_inputs, data.test_inputs])[:, 0]
    np.testing.assert_array_equal(np.sort(together), np.arange(50))
    for part in (data, other):
        np.testing.assert_array_equal(part.test_labels, 2 * part.test_inputs)
    np.testing.assert_array_equal(data.test_inputs, again.test_inputs)
    assert not np.array_equal(data.test_inputs, other.test_inputs)


EMPTY = (
    "{path}: holds no samples. The first line holds the names of the columns, every further line one sample."
)
COLUMNS: dict[str, Any] = {"inputs": ["x"], "targets": ["y"]}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", {}, EMPTY),
        ("x,y\n", {}, EMPTY),
        ("x,z\n1,2\n", {}, "data.targets: no column of {path} has this name (got 'y'). "
         "Columns there: x, z."),
        ("x,output\n1,2\n", {"targets": ["outputs"]}, "data.targets: no column of {path} has this name "
         "(got 'outputs'). Did you mean output? Columns there: x, output."),
        ("x,y\n1,2\n3\n", {}, "{path}: line 3: has 1 cell, and the first line names 2 columns"),
        ("# made by hand\nx,y\n1,2\n\n3,four\n", {}, "{path}: line 5.column y: is not a number (got 'four'). "
         "Write for example 10k, 2meg, 1u, 1e-3."),
        ("x;y\n0,5;1\n", {}, "{path}: line 2.column x: is not a number (got '0,5'). "
         "Write for example 10k, 2meg, 1u, 1e-3."),
        ("x,y\n1,nan\n", {}, "{path}: line 2.column y: is not a number (got 'nan'). "
         "Write for example 10k, 2meg, 1u, 1e-3."),
        ("x,y\n1,1e999\n", {}, "{path}: line 2.column y: must be finite (got '1e999')"),
        ("x,x\n1,2\n", {}, "{path}: line 1: two columns have the same name (got 'x')"),
        ("x,\n1,2\n", {}, "{path}: line 1: a column has no name (got '')"),
        ('x,y\n1,"2\n', {}, "{path}: line 2: is not CSV: unexpected end of data"),
        ("x,y\n1,2\n3,4\n", {"test_fraction": 0.2}, "{path}: data.test_fraction: 2 samples cannot be split "
         "(got 0.2). Set test_fraction: 0 to test on the training samples."),
        ("x,y\n1,a\n2,a\n", {"targets": None, "label": "y"}, "{path}: column y: holds one class only "
         "(got 'a')"),
        (b"x,y\n1,\xff\n", {}, "{path}: is not a text file. A CSV file was expected."),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(
    tmp_path: Path, text: str | bytes, columns: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SpecError) as error:
        load_csv(path, **(COLUMNS | {"test_fraction": 0} | columns))
    assert str(error.value) == message.format(path=path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file or directory"):
        load_csv(tmp_path / "gone.csv", **COLUMNS)
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        load_csv(tmp_path, **COLUMNS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=60), st.text(alphabet="xy,;\t\"'#\n\r 0123456789.ek-", max_size=60)))
def test_anything_else_is_an_error_of_ours(tmp_path: Path, noise: str | bytes) -> None:
    rest = noise if isinstance(noise, bytes) else noise.encode()
    try:
        data = load_csv(written(tmp_path, b"x,y\n" + rest), test_fraction=0, **COLUMNS)
    except CircuitsimError:
        return
    assert np.isfinite(data.train_inputs).all()
    assert np.isfinite(data.train_labels).all()
    assert data.train_inputs.shape == data.train_labels.shape
