"""What is added to a loss, or takes its place, for classifiers and policies alike.

Each is a function of tensors that the forward pass made, or an object called with its inputs, so
that it goes in the plain loop and in a closure that runs the forward pass only:

```python
def closure():
    with double_backpropagation():
        logits = model(x)
        loss = flooding(F.cross_entropy(logits, y), 0.05)
        return loss + parameter_gradient_penalty(loss, model, 0.01), logits
```
"""

from npg.objectives.flooding import flooding
from npg.objectives.gradient_penalties import (
    double_backpropagation,
    implicit_gradient_regularisation,
    input_gradient_penalty,
    parameter_gradient_penalty,
)
from npg.objectives.input_noise import InputNoise
from npg.objectives.metrics import accuracy, macro_f1
from npg.objectives.score_function import score_function
from npg.objectives.virtual_adversarial import VirtualAdversarial

__all__ = [
    "InputNoise",
    "VirtualAdversarial",
    "accuracy",
    "double_backpropagation",
    "flooding",
    "implicit_gradient_regularisation",
    "input_gradient_penalty",
    "macro_f1",
    "parameter_gradient_penalty",
    "score_function",
]
