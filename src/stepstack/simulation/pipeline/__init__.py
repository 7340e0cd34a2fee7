"""Pipelines in simulation: what a plan's clock says of bubbles, memory and the critical path, and studies of plans.

``analysis`` reads a timeline, ``trace`` and ``figures`` show one. ``study`` compares plans on drifting mixes, step by
step and under caps, and ``published`` on the paper's models. The clock itself stands in planning/pipeline/timeline.py.
No torch.
"""
