"""What trains: learners, the update, options of training."""
