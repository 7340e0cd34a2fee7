"""InfinitePOD in simulation: the published fault trace and random faults on every architecture, and cost, power and
MFU.

``trace`` reads and maps the trace, ``waste`` replays fault states, ``traffic`` measures cross-ToR rates, ``costs`` has
the bill of materials, ``mfu`` the analytic trend. docs/infinitepod.md has the formulas and results. No torch.
"""
