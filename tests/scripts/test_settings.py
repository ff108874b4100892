"""Numbers of preset files, as the options have them."""

import pytest
from training import command_line

from npg.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{num_envs: two}", r"Bad-v1: num_envs must be a whole number, got 'two'"),
        ("{num_envs: true}", r"Bad-v1: num_envs must be a whole number, got True"),
        ("{seed: null}", r"Bad-v1: seed must be a whole number, got None"),
        (
            "{total_timesteps: 1000.5}",
            r"Bad-v1: total_timesteps must be a whole number, got 1000",
        ),
        ("{arguments: {gamma: high}}", r"Bad-v1: gamma must be a number, got 'high'"),
        ("{arguments: {n_steps: [8]}}", r"Bad-v1: n_steps must be a whole number, got \(8,\)"),
    ],
)
def test_what_is_no_number_is_refused_by_name(tmp_path, written, message):
    file = tmp_path / "bad.yml"
    file.write_text(f"Bad-v1: {written}\n")
    with pytest.raises(ConfigurationError, match=message):
        command_line.parse(f"trpo --env Bad-v1 --preset {file}".split())


def test_numbers_that_yaml_takes_for_strings(tmp_path):
    file = tmp_path / "strings.yml"
    file.write_text("X-v1: {total_timesteps: 1e5, arguments: {gamma: 9e-1, n_steps: 3e2}}\n")
    _, options = command_line.parse(f"trpo --env X-v1 --preset {file}".split())
    numbers = (options.total_timesteps, options.arguments.n_steps, options.arguments.gamma)
    assert numbers == (100_000, 300, 0.9)
    assert [type(number) for number in numbers] == [int, int, float]
