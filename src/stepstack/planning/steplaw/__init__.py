"""Step Law (arXiv 2503.04715): learning rate and batch size of a pre-training run from its size. No torch.

``laws`` has the published formulas, ``count`` a model's parameters from its config, ``advice`` the settings to train
with, ``grids`` tables of runs, and ``fit`` optima, surfaces and power laws.
"""
