"""Continual learning in a closed loop: worlds with tasks, agents, and methods against forgetting.

`import everloop` registers the worlds with Gymnasium and imports nothing heavier than Gymnasium.
The parts are `everloop.envs`, `everloop.agents`, `everloop.loop` and `everloop.scenarios`.
"""

from everloop import envs as envs

__version__ = "0.1.0"
