"""Continual learning in a closed loop: worlds with tasks, agents, a loop that remembers.

`import everloop` registers the worlds with Gymnasium and imports nothing heavier than it. The rest
is in `everloop.envs`, `everloop.agents`, `everloop.loop` and `everloop.scenarios`.
"""

from everloop import envs as envs

__version__ = "0.1.0"
