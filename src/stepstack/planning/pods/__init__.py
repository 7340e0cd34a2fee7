"""InfinitePOD (arXiv 2502.03885): rings of GPUs closed by optical transceivers, and the placement of jobs on them.

``ring`` has the K-hop topology and its wiring, ``architectures`` the capacity of it and of its competitors around
faults. ``orchestrator`` keeps rings up to date fault by fault. ``placement`` puts a job on rings with little traffic
between ToR switches. ``rankfile`` holds the order of machines that `stepstack launch --placement` reads.
docs/infinitepod.md has the formulas. No torch.
"""
