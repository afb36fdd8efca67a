"""Everything that knows Stable-Baselines3."""
