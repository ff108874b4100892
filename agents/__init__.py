"""Reinforcement-learning agents on the curvature engine, with Stable-Baselines3's contract.

```python
from agents import TRPO

TRPO("MlpPolicy", "CartPole-v1", seed=0).learn(50_000, progress_bar=True)
```
"""

from agents.a2c import A2C
from agents.acktr import ACKTR
from agents.es import ES
from agents.npg import NPG
from agents.ppo import PPO
from agents.reinforce import REINFORCE
from agents.trpo import TRPO

__all__ = ["A2C", "ACKTR", "ES", "NPG", "PPO", "REINFORCE", "TRPO"]
