"""Results of runs: evaluations, measures and figures."""
