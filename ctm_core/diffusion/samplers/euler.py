"""Euler's method along the ODE (DDIM's trajectory); NFE n on n points."""

TRAITS = {"jumps": False, "label": "Euler"}
