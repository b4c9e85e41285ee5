"""Tables of results: what people read and what programs read back."""

import csv
import io
import json
import math

import pytest
import torch

from pyro_vsm import report
from pyro_vsm.errors import UserError
from pyro_vsm.metrics import Interval

ROWS = [
    {
        "system": "PN",
        "accuracy": Interval(0.5, 0.0019, 10000),
        "nll": Interval(1.23456, 0.004, 10000),
        "ece": 0.0312,
        "brier": Interval(0.61, 0.001, 10000),
        "accuracy_difference": None,
        "nll_difference": None,
    },
    {
        "system": "VSM | *mean*",
        "accuracy": Interval(0.521234, 0.00194, 10000),
        "nll": Interval(1.2, 0.004, 10000),
        "ece": 0.025,
        "brier": Interval(0.6, 0.001, 10000),
        "accuracy_difference": Interval(0.021234, 0.0012, 10000),
        "nll_difference": Interval(-0.03456, 0.0021, 10000),
    },
]


def test_text_is_in_percent_with_two_decimals():
    lines = report.to_text(ROWS).splitlines()
    assert lines[0].split("  ")[0] == "system"
    for heading in ("accuracy %", "NLL (nats)", "ECE %", "Brier", "Δ accuracy %", "Δ NLL (nats)"):
        assert heading in lines[0]
    assert "50.00 ± 0.19" in lines[2]
    assert "1.2346 ± 0.0040" in lines[2]
    assert lines[2].count("–") == 2
    for cell in ("VSM | *mean*", "52.12 ± 0.19", "+2.12 ± 0.12", "-0.0346 ± 0.0021", "2.50"):
        assert cell in lines[3]
    assert len({len(line) for line in lines[:2]}) == 1


def test_markdown_is_a_table_with_title_and_notes_and_escaped_cells():
    text = report.to_markdown(ROWS, "Results", ["10 000 episodes", "seed 0"])
    lines = text.splitlines()
    assert lines[0] == "# Results"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {8}
    assert "VSM \\| \\*mean\\*" in table[3]
    assert lines[-2:] == ["- 10 000 episodes", "- seed 0"]
    assert text.endswith("\n")
    assert report.to_markdown(ROWS).startswith("| system")


def test_csv_reads_back_with_every_digit():
    back = list(csv.DictReader(io.StringIO(report.to_csv(ROWS))))
    assert list(back[0]) == [
        "system", "accuracy", "accuracy_95", "nll", "nll_95", "ece", "brier", "brier_95",
        "accuracy_difference", "accuracy_difference_95", "nll_difference", "nll_difference_95",
    ]  # fmt: skip
    for row, original in zip(back, ROWS):
        assert row["system"] == original["system"]
        assert float(row["ece"]) == original["ece"]
        for name in ("accuracy", "nll", "brier", "accuracy_difference", "nll_difference"):
            if original[name] is None:
                assert row[name] == row[f"{name}_95"] == ""
            else:
                assert float(row[name]) == original[name].mean
                assert float(row[f"{name}_95"]) == original[name].half_width


def test_json_reads_back_to_the_same_rows():
    content = json.loads(report.to_json(ROWS, "Results", ["note"]))
    assert (content["title"], content["notes"]) == ("Results", ["note"])
    back = [
        {name: Interval(**value) if isinstance(value, dict) else value for name, value in row.items()}
        for row in content["rows"]
    ]
    assert back == ROWS


def test_rows_may_differ_in_columns_and_hold_other_values():
    rows = [{"system": "a", "shots": 5, "rate": 0.123456789}, {"system": "1e5", "extra_note": "x\ny"}]
    text = report.to_text(rows)
    assert "extra note" in text
    assert "0.1235" in text
    assert "1e5" in text
    assert "x y" in text
    assert list(csv.DictReader(io.StringIO(report.to_csv(rows))))[1] == {
        "system": "1e5", "shots": "", "rate": "", "extra_note": "x\ny",
    }  # fmt: skip
    assert json.loads(report.to_json(rows))["rows"][0] == {
        "system": "a", "shots": 5, "rate": 0.123456789, "extra_note": None,
    }  # fmt: skip


def test_a_single_episode_has_no_interval():
    rows = [{"accuracy": Interval(0.4, math.nan, 1), "loss": math.inf}]
    assert "40.00 ± n/a" in report.to_text(rows)
    assert json.loads(report.to_json(rows))["rows"] == [
        {"accuracy": {"mean": 0.4, "half_width": None, "n": 1}, "loss": None}
    ]
    assert report.to_csv(rows) == "accuracy,accuracy_95,loss\n0.4,,inf\n"


def test_write_report_writes_three_files(tmp_path):
    paths = report.write_report(ROWS, tmp_path / "new", "table", "T", ["n"])
    assert [p.name for p in paths] == ["table.md", "table.csv", "table.json"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["table.csv", "table.json", "table.md"]
    assert paths[0].read_text(encoding="utf-8") == report.to_markdown(ROWS, "T", ["n"])
    assert paths[1].read_text(encoding="utf-8") == report.to_csv(ROWS)
    assert paths[2].read_text(encoding="utf-8") == report.to_json(ROWS, "T", ["n"])


@pytest.mark.parametrize(
    ("rows", "stem", "message"),
    [
        ([], "a", "at least one row"),
        ([{"x": torch.ones(2)}], "a", "row 0, column 'x' holds a Tensor"),
        (ROWS, "../a", r"stem is '\.\./a'"),
        (ROWS, "", "stem is ''"),
    ],
)
def test_bad_reports_are_refused_and_leave_nothing(tmp_path, rows, stem, message):
    with pytest.raises(UserError, match=message):
        report.write_report(rows, tmp_path / "out", stem)
    assert list(tmp_path.iterdir()) == []
