"""One row a quantity and point, and no run lost."""

import csv

from comparison.results import load
from comparison.tidy import CSV_COLUMNS, write_csv

from tests.scripts.comparison.synthetic import agent_run, agents, optimizer_run, save


def rows(directory):
    write_csv(load(directory), directory / "results.csv")
    with (directory / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_quantity_and_point(tmp_path):
    run = agent_run("a", "E", 0, [3.0, 4.0], diagnostics={"kl": [[50, 0.25]], "kl_bound": 1})
    table = rows(save(tmp_path, {"a_E_0": run}))
    assert tuple(table[0]) == CSV_COLUMNS
    found = [(r["quantity"], r["steps"], r["seconds"], r["value"]) for r in table]
    assert found == [
        ("training_return", "100.0", "1.0", "0.0"),
        ("training_return", "200.0", "2.0", "10.0"),
        ("final_return", "200", "2.0", "3.0"),
        ("final_return", "200", "2.0", "4.0"),
        ("kl", "50", "", "0.25"),
    ]


def test_optimizers_have_their_rate(tmp_path):
    table = rows(save(tmp_path, {"x": optimizer_run("kfac", "digits-mlp", 0, 0.1, [2.0, 1.0])}))
    assert {row["rate"] for row in table} == {"0.1"}
    losses = [float(r["value"]) for r in table if r["quantity"] == "test_loss"]
    assert losses == [2.0, 1.0]
    quantities = {row["quantity"] for row in table}
    assert quantities >= {"training_loss", "test_accuracy", "accuracy", "step_seconds"}


def test_no_run_is_lost(tmp_path):
    table = rows(agents(tmp_path))
    runs = {(row["name"], row["task"], row["seed"]) for row in table}
    assert len(runs) == 40
    lost = [row for row in table if row["status"] != "finished"]
    assert [row["quantity"] for row in lost] == ["", ""]


def test_nothing_else_is_left_behind(tmp_path):
    rows(save(tmp_path, {"a": agent_run("a", "E", 0, [1.0])}))
    assert {p.name for p in tmp_path.iterdir()} == {"comparison.json", "runs", "results.csv"}
