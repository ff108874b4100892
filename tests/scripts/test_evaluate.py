"""evaluate.py on small runs."""

import re
import shutil
import sys

import numpy as np
import pytest
from common import seeds
from evaluate import main
from training import replay, run_directory
from training.replay import Options


def test_the_last_evaluation_can_be_reproduced(finished_run):
    """Same parameters, same normaliser, same seed: the same episodes."""
    evaluations = run_directory.read_evaluations(finished_run)
    seed = seeds.derived(3, seeds.EVALUATION, int(evaluations["timesteps"][-1]))
    options = Options(finished_run, episodes=3, checkpoint="last", seed=seed)
    model, env, _ = replay.load(options)
    returns, lengths = replay.play(model, env, options)
    np.testing.assert_array_equal(np.sort(returns), np.sort(evaluations["results"][-1]))
    np.testing.assert_array_equal(np.sort(lengths), np.sort(evaluations["ep_lengths"][-1]))


def test_rewards_are_undivided_and_the_statistics_stay(finished_run):
    options = Options(finished_run, episodes=2)
    model, env, _ = replay.load(options)
    count = env.obs_rms.count
    returns, lengths = replay.play(model, env, options)
    np.testing.assert_array_equal(returns, lengths)  # CartPole pays 1 a step
    assert env.obs_rms.count == count > 100


def test_it_prints_statistics(finished_run, capsys):
    assert main([str(finished_run), "--episodes", "2"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"return +[\d.]+ ± [\d.]+ +median [\d.]+ +min [\d.]+ +max [\d.]+", output)
    assert "best_model.zip" in output


def test_a_seed_fixes_random_actions_too(finished_run):
    options = Options(finished_run, episodes=4, deterministic=False, seed=5)
    first = replay.play(*replay.load(options)[:2], options)[0]
    second = replay.play(*replay.load(options)[:2], options)[0]
    np.testing.assert_array_equal(first, second)


def test_best_is_default_last_the_fallback(finished_run, tmp_path, capsys):
    copy = shutil.copytree(finished_run, tmp_path / "copy")
    (copy / "best_model.zip").unlink()
    assert main([str(copy), "--episodes", "1"]) == 0
    assert "last_model.zip" in capsys.readouterr().out
    assert main([str(copy), "--episodes", "1", "--checkpoint", "best"]) == 2
    assert "no best checkpoint" in capsys.readouterr().err


def test_a_checkpoint_file_knows_its_run_or_needs_the_environment(finished_run, tmp_path, capsys):
    assert main([str(finished_run / "last_model.zip"), "--episodes", "1"]) == 0
    alone = shutil.copy(finished_run / "last_model.zip", tmp_path / "alone.zip")
    assert main([str(alone), "--episodes", "1"]) == 2
    assert "--env" in capsys.readouterr().err
    assert main([str(alone), "--episodes", "1", "--env", "CartPole-v1"]) == 0


@pytest.mark.filterwarnings("ignore:.*starts? afresh")
def test_a_checkpoint_of_sb3_contrib(tmp_path):
    contrib = pytest.importorskip("sb3_contrib")
    contrib.TRPO("MlpPolicy", "CartPole-v1", seed=0).save(tmp_path / "theirs.zip")
    assert main([str(tmp_path / "theirs.zip"), "--env", "CartPole-v1", "--episodes", "1"]) == 0


def test_what_is_no_checkpoint_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "not the directory of a run" in capsys.readouterr().err
    (tmp_path / "bad.zip").write_bytes(b"PK")
    assert main([str(tmp_path / "bad.zip"), "--env", "CartPole-v1"]) == 2
    assert "not a zip file" in capsys.readouterr().err
    assert main([str(tmp_path / "none.zip"), "--env", "CartPole-v1"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_a_video_without_moviepy_names_the_extra(finished_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "moviepy", None)
    video = tmp_path / "video.mp4"
    assert main([str(finished_run), "--episodes", "1", "--record", str(video)]) == 2
    assert "pip install .[video]" in capsys.readouterr().err


def test_the_first_episode_becomes_a_video(finished_run, tmp_path, capsys):
    pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    video = tmp_path / "video.mp4"
    assert main([str(finished_run), "--episodes", "2", "--record", str(video)]) == 0
    assert video.stat().st_size > 1000
    assert str(video) in capsys.readouterr().out


def test_options_are_documented(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--episodes", "--checkpoint", "--record", "--deterministic", "--seed", "--env"):
        assert flag in text


def test_loading_for_replay_changes_no_file(finished_run):
    before = (finished_run / "last_model.zip").read_bytes()
    assert main([str(finished_run), "--episodes", "1"]) == 0
    assert (finished_run / "last_model.zip").read_bytes() == before
