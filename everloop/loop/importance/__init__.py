"""The importance of weights: per-example gradients and Fisher information."""
