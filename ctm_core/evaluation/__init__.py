"""From weights to scores: samples of every cell, metrics, likelihood, trajectory errors."""
