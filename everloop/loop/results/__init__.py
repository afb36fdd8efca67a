"""What a run gives: evaluations, metrics of the score matrix, figures."""
