"""Tables never show digits that the truth is not good for, and CSV and LaTeX hold what they should."""

import csv
import io

import pytest
from rich.console import Console

from recon.report.tables import alignment_table, as_csv, as_latex, formatted, method_table, metric_of, with_interval
from recon.types import Metric


def metric(value: float, floor: float | None = None, **changes) -> Metric:
    return Metric(**{"group": "surface", "name": "accuracy_mean", "value": value, "unit": "mm", "noise_floor": floor, **changes})


def printed(table) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "floor", "text"),
    [
        (1.23456, None, "1.235"),
        (1.23456, 0.32, "1.2"),
        (0.226, 0.32, "< 0.32"),
        (-0.226, 0.32, "< 0.32"),
        (-4.26, 0.32, "-4.3"),
        (12.6, 2.0, "13"),
        (1.9, 2.0, "< 2"),
        (0.0123, 0.001, "0.012"),
        (0.0, None, "0"),
    ],
)
def test_digits_end_where_the_truth_ends(value, floor, text):
    assert formatted(metric(value, floor)) == text


def test_an_interval_has_the_same_digits():
    assert with_interval(metric(1.234, 0.32, interval=(0.2, 1.56))) == "1.2 [< 0.32, 1.6]"
    assert with_interval(metric(1.234)) == "1.234"


def test_a_metric_survives_json():
    original = metric(1.0, 0.3, interval=(0.5, 1.5), protocol="servct-mono")
    stored = {**original.__dict__, "interval": [0.5, 1.5]}
    assert metric_of(stored) == original


def test_one_method_has_a_column_for_each_alignment():
    text = printed(alignment_table([metric(1.5, alignment="none"), metric(0.5, alignment="sim3_trajectory")], "title"))
    row = next(line for line in text.splitlines() if "accuracy_mean (mm)" in line)
    assert row.index("1.5") < row.index("0.5") and "sim3_trajectory" in text


def test_several_methods_have_a_column_each_and_the_best_is_marked():
    f = dict(name="f_2mm", unit="1", lower_is_better=False)
    text = printed(method_table({"a": [metric(1.5), metric(0.9, **f)], "b": [metric(0.5), metric(0.4, **f)]}, "title"))
    lines = text.splitlines()
    assert not any(
        "*" in line for line in printed(method_table({"a": [metric(-8.0, lower_is_better=None)], "b": [metric(0.1)]}, "t")).splitlines()
    )
    assert not any("*" in line for line in printed(method_table({"a": [metric(0.1, 0.3)], "b": [metric(0.2, 0.3)]}, "t")).splitlines())
    assert "0.5 *" in next(line for line in lines if "accuracy_mean" in line)
    assert "0.9 *" in next(line for line in lines if "f_2mm" in line)


def test_csv_keeps_every_column():
    rows = list(csv.DictReader(io.StringIO(as_csv([{"a": 1, "b": 'x, "y"'}, {"a": 2, "c": 3.5}]))))
    assert rows == [{"a": "1", "b": 'x, "y"', "c": ""}, {"a": "2", "b": "", "c": "3.5"}]


def test_latex_rows_are_escaped_and_name_their_columns():
    text = as_latex({"our_net": [metric(1.5), metric(0.2, 0.32, name="hd95")], "50%": [metric(2.5)]})
    assert text.splitlines() == [
        "% surface, alignment none",
        r"% method & accuracy_mean (mm) & hd95 (mm) \\",
        r"our\_net & 1.5 & $<$0.32 \\",
        r"50\% & 2.5 & -- \\",
    ]
