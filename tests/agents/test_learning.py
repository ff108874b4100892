"""Agents reach optima that are known."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents import NPG, TRPO
from envs import LinearQuadraticRegulator, make
from tests.agents.helpers import AGENTS, BOX, DISCRETE, MULTI_BINARY, MULTI_DISCRETE, Toy, small
