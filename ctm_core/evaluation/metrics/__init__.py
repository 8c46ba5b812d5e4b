"""Scores of sets of images.

A metric is one module and one entry of :mod:`ctm_core.config.metric_registry`. :mod:`.state` is
what a pass over images leaves, of samples and of the reference alike; :mod:`.scoring` turns two
states into values named by :mod:`.names`.
"""
