"""Metrics as tensors, beside scikit-learn's."""

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from npg.errors import ConfigurationError
from npg.objectives import accuracy, macro_f1


@pytest.mark.parametrize("number", [1, 2, 7, 200])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scikit_learn_says_the_same(number, classes):
    """Few samples of many classes: some are predicted only, some true only, some neither."""
    predictions = torch.randint(classes, (8, number))
    labels = torch.randint(classes, (number,))
    accuracies, scores = accuracy(predictions, labels), macro_f1(predictions, labels, classes)
    assert accuracies.shape == scores.shape == (8,)
    for row, a, f in zip(predictions, accuracies, scores, strict=True):
        assert float(a) == pytest.approx(accuracy_score(labels, row), rel=1e-6)
        expected = f1_score(labels, row, average="macro", zero_division=0)
        assert float(f) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", [accuracy, lambda p, y: macro_f1(p, y, 4)])
def test_inside_vmap(metric):
    """The metric of a linear model at eight candidates for its weight."""
    x, labels, weights = torch.randn(30, 5), torch.randint(4, (30,)), torch.randn(8, 5, 4)
    batched = torch.func.vmap(lambda weight: metric((x @ weight).argmax(-1), labels))(weights)
    one_by_one = [metric((x @ weight).argmax(-1), labels) for weight in weights]
    torch.testing.assert_close(batched, torch.stack(one_by_one), rtol=0, atol=0)


@pytest.mark.parametrize("metric", [accuracy, lambda p, y: macro_f1(p, y, 3)])
def test_logits_in_place_of_classes(metric):
    with pytest.raises(ConfigurationError, match=r"predictions must be classes.*argmax"):
        metric(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="labels must be classes"):
        metric(torch.zeros(5, dtype=torch.long), torch.randn(5))


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        # Class 0 has F1 1; what is no class has 0.
        ([0, 0, 5], [0, 0, 2], (1 + 0 + 0) / 3),
        ([0, 0, 5], [0, 0, 3], (1 + 0) / 2),
        ([-1, -1], [-1, -1], 0.0),
    ],
)
def test_what_is_no_class_counts_against_the_score(predictions, labels, expected):
    score = macro_f1(torch.tensor(predictions), torch.tensor(labels), 3)
    assert float(score) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [0, None, 2.5])
def test_the_number_of_classes(classes):
    with pytest.raises(ConfigurationError, match="classes must be"):
        macro_f1(torch.tensor([0]), torch.tensor([0]), classes)
