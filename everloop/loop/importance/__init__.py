"""How much each weight matters: per-example gradients and Fisher information."""
