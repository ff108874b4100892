"""Candidates that are asked for, and what they were told to be worth."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import EvolutionStrategies
from tests.npg.optim.search_problems import classifier, parameters_of


class TestAskAndTell:
    def test_are_what_step_does(self):
        model, x, y = classifier()
        twin = copy.deepcopy(model)
        optimizer = EvolutionStrategies(twin.parameters(), 0.1, candidates=12)
        stepped = EvolutionStrategies(model, 0.1, candidates=12)
        for _ in range(3):
            stepped.step(lambda: F.cross_entropy(model(x), y))
            rows = optimizer.ask()
            values = []
            for row in rows:
                other = copy.deepcopy(twin)
                nn.utils.vector_to_parameters(row, other.parameters())
                values.append(float(F.cross_entropy(other(x), y).detach()))
            optimizer.tell(values)
        torch.testing.assert_close(parameters_of(twin), parameters_of(model))

    def test_tell_wants_an_ask_and_as_many_objectives(self):
        optimizer = EvolutionStrategies(classifier()[0], candidates=4)
        with pytest.raises(ConfigurationError, match="ask first"):
            optimizer.tell([1.0, 2.0, 3.0, 4.0])
        optimizer.ask()
        with pytest.raises(ConfigurationError, match="4 real numbers"):
            optimizer.tell([1.0])
        assert optimizer.tell([1.0, 2.0, 3.0, 4.0]).accepted
        with pytest.raises(ConfigurationError, match="ask first"):
            optimizer.tell([1.0, 2.0, 3.0, 4.0])

    @pytest.mark.parametrize("objectives", [[1.0, 2.0, "x", 4.0], [1.0, 2.0, 3.0, 1j]])
    def test_tell_wants_numbers(self, objectives):
        optimizer = EvolutionStrategies(classifier()[0], candidates=4)
        optimizer.ask()
        with pytest.raises(ConfigurationError):
            optimizer.tell(objectives)
        assert optimizer.tell(iter([1.0, 2.0, 3.0, 4.0])).accepted

    def test_numbers_keep_their_digits(self):
        # In single precision these are one number, and nothing would move.
        torch.set_default_dtype(torch.float32)
        optimizer = EvolutionStrategies(classifier()[0], candidates=4)
        optimizer.ask()
        report = optimizer.tell([1e9 + 1, 1e9 + 2, 1e9 + 3, 1e9 + 4])
        assert report.accepted
        assert report.best == 1e9 + 1

    def test_tell_refuses_complex_tensors(self):
        optimizer = EvolutionStrategies(classifier()[0], candidates=4)
        optimizer.ask()
        with pytest.raises(ConfigurationError, match="real numbers"):
            optimizer.tell(torch.zeros(4, dtype=torch.complex64))

    @pytest.mark.parametrize("adapt", ["none", "separable"])
    def test_parameters_that_changed_since_are_not_overwritten(self, adapt):
        def moved(model, optimizer):
            with torch.no_grad():
                model[0].weight += 1

        def frozen(model, optimizer):
            model[0].weight.requires_grad_(False)

        def added(model, optimizer):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2).double())]})

        for change in (moved, frozen, added):
            model, *_ = classifier()
            optimizer = EvolutionStrategies(model, candidates=4, adapt=adapt)
            optimizer.ask()
            change(model, optimizer)
            changed = parameters_of(model)
            with pytest.raises(ConfigurationError, match="ask again"):
                optimizer.tell([1.0, 2.0, 3.0, 4.0])
            assert torch.equal(parameters_of(model), changed)
            optimizer.ask()
            assert optimizer.tell([1.0, 2.0, 3.0, 4.0]).accepted

    def test_a_loaded_state_and_a_copy_have_asked_nothing(self):
        model, *_ = classifier()
        optimizer = EvolutionStrategies(model, candidates=4)
        optimizer.ask()
        with pytest.raises(ConfigurationError, match="ask first"):
            copy.deepcopy(optimizer).tell([1.0, 2.0, 3.0, 4.0])
        optimizer.load_state_dict(optimizer.state_dict())
        with pytest.raises(ConfigurationError, match="ask first"):
            optimizer.tell([1.0, 2.0, 3.0, 4.0])

    def test_as_many_objectives_as_were_asked_for(self):
        optimizer = EvolutionStrategies(classifier()[0], candidates=4)
        optimizer.ask()
        optimizer.candidates = 8
        with pytest.raises(ConfigurationError, match="4 real numbers"):
            optimizer.tell([1.0] * 8)
