"""Step Law (arXiv 2503.04715): learning rate and batch size of a pre-training run from its size. No torch.

``laws``: the published formulas · ``count``: a model's parameters from its config · ``advice``: what to train with ·
``grids``: tables of runs · ``fit``: optima, surfaces, power laws · ``judge``: excess loss and held-out laws ·
``released``: all of it on the authors' data · ``figures``: plots and pages.
"""
