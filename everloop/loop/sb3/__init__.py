"""Learners around the algorithms of Stable-Baselines3. Only this folder imports it."""
