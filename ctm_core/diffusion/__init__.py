"""The mathematics on tensors: schedules, scalings, the jump G, solvers, samplers, random draws."""
