"""Comparisons are read whole, with what failed and what is missing."""

import json

import pytest
from comparison import results
from comparison.results import load

from npg.errors import ConfigurationError
from tests.scripts.comparison.synthetic import about, agent_run, agents, optimizer_run, save


class TestLoad:
    def test_every_planned_run_is_there_in_order(self, tmp_path):
        found = load(agents(tmp_path))
        planned = json.loads((tmp_path / "comparison.json").read_text())["planned"]
        assert [run.directory for run in found.runs] == planned
        assert found.names == ["trpo", "sb3-contrib:trpo", "sb3:ppo", "agents_of_mine:Agent"]
        assert len(found.with_status(results.FAILED)) == len(found.with_status("missing")) == 1
        assert len(found.select("trpo", "Hopper-v5")) == 5

    @pytest.mark.parametrize(
        ("directory", "name", "task", "seed"),
        [
            ("sb3-ppo_Hopper-v5_3", "sb3:ppo", "Hopper-v5", 3),
            ("my_agent_Hopper-v5_0", "my_agent", "Hopper-v5", 0),
            ("unseen_Ant_v5_1", "unseen", "Ant_v5", 1),
            ("nothing", "nothing", "nothing", None),
        ],
    )
    def test_missing_run_is_told_by_its_name(self, tmp_path, directory, name, task, seed):
        known = {f"{n}_Hopper-v5_9": agent_run(n, "Hopper-v5", 9, [1.0]) for n in ("my_agent",)}
        known["sb3-ppo_Hopper-v5_9"] = agent_run("sb3:ppo", "Hopper-v5", 9, [1.0])
        run = load(save(tmp_path, {directory: None, **known})).runs[0]
        assert (run.status, run.name, run.task, run.seed) == ("missing", name, task, seed)
        assert run.error == "not run yet"

    def test_missing_run_of_an_optimizer_has_its_rate(self, tmp_path):
        run = optimizer_run("kfac", "digits-mlp", 0, 0.1, [1.0])
        found = load(save(tmp_path, {"kfac_digits-mlp_0_0.1": run, "kfac_digits-mlp_1_0.1": None}))
        assert (found.runs[1].seed, found.runs[1].rate) == (1, 0.1)

    def test_killed_run_says_how_far_it_came(self, tmp_path):
        save(tmp_path, {"a_E_0": agent_run("a", "E", 0, [1.0]), "a_E_1": None})
        (tmp_path / "runs/a_E_1/progress.json").write_text('{"steps": 12000, "seconds": 3.0}')
        assert load(tmp_path).runs[1].error == "no result yet; it had come to step 12,000"

    def test_half_written_result_is_a_failed_run(self, tmp_path):
        save(tmp_path, {"a_E_0": agent_run("a", "E", 0, [1.0]), "a_E_1": None})
        (tmp_path / "runs/a_E_1/result.json").write_text('{"name": "a", "task":')
        found = load(tmp_path)
        assert [run.status for run in found.runs] == ["finished", "failed"]
        assert "cannot be read" in found.runs[1].error

    @pytest.mark.parametrize(
        "damage",
        [
            {"curve": 5},
            {"curve": [[1, "x", 2]]},
            {"curve": [[1, 2]]},
            {"evaluations": [[1, 2, 3]]},
            {"final": [[1]]},
            {"final": []},
        ],
    )
    def test_a_result_of_another_form_is_a_failed_run(self, tmp_path, damage):
        run = agent_run("a", "E", 0, [1.0]) | damage
        loaded = load(save(tmp_path, {"a_E_0": run})).runs[0]
        assert loaded.status == "failed"
        assert "result.json cannot be read: " in loaded.error

    def test_run_that_nobody_planned_is_there_too(self, tmp_path):
        save(tmp_path, {"a_E_0": agent_run("a", "E", 0, [1.0])})
        (tmp_path / "comparison.json").write_text(json.dumps(about("agent", [])))
        assert len(load(tmp_path).runs) == 1

    def test_unknown_keys_and_nulls_do_no_harm(self, tmp_path):
        run = agent_run("a", "E", 0, [1.0, None], [[1, 2.0, None]], from_the_future=1, preset=None)
        loaded = load(save(tmp_path, {"a_E_0": run})).runs[0]
        assert loaded.preset is None
        assert loaded.curve[0][2] != loaded.curve[0][2]

    @pytest.mark.parametrize(
        ("second", "counts"),
        [
            ({"cpu": "A", "cores": 8, "at_once": 2}, True),  # a larger machine of the same kind
            ({"cpu": "A", "cores": 2, "at_once": 3}, False),
            ({"cpu": "B", "cores": 4, "at_once": 4}, False),
            ({}, True),  # made before that was noted
        ],
    )
    def test_seconds_count_on_like_machines_with_a_core_for_each_run(
        self, tmp_path, second, counts
    ):
        machines = ({"cpu": "A", "cores": 4, "at_once": 4}, second)
        made = {
            f"a_E_{seed}": agent_run("a", "E", seed, [1.0], machine=machine)
            for seed, machine in enumerate(machines)
        }
        assert load(save(tmp_path, made)).seconds_count is counts
        assert load(save(tmp_path, made, wall_clock_counts=False)).seconds_count is False

    @pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"kind": "cars"}'])
    def test_no_comparison(self, tmp_path, content):
        if content is not None:
            (tmp_path / "comparison.json").write_text(content)
        with pytest.raises(ConfigurationError, match=r"comparison\.json"):
            load(tmp_path)
