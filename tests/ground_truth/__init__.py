"""The method on Gaussian mixtures, where every answer is known: solvers, samplers, objectives."""
