"""InfinitePOD (arXiv 2502.03885): rings of GPUs closed by optical transceivers; which nodes form one, where a job goes.

``ring`` is the K-hop topology and its wiring, ``architectures`` what it and its competitors can host around faults,
``orchestrator`` the rings kept up to date fault by fault, ``placement`` a job on them with little traffic between ToR
switches, ``rankfile`` the order of machines that `stepstack launch --placement` reads. docs/infinitepod.md has the
formulas. No torch.
"""
