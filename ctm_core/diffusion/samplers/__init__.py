"""Samplers, one per file: its traits as a literal, and either its plan or its step.

The file's name is the sampler's name. ``TRAITS`` is read without running the file; its keys are
those of :class:`ctm_core.config.sampler_traits.SamplerTraits`. A sampler that jumps has
``plan(levels, gamma)``, one that follows the ODE has ``step(denoiser, x, t, s)``;
:mod:`ctm_core.diffusion.sampling` calls them.
"""
