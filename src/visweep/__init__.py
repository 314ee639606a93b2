"""visweep: hyperparameter sweeps for image classifiers, on one shared GPU trainer."""
