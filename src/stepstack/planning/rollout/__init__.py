"""StreamRL's decisions about rollouts: devices of generation and training, the split of prompts by length, and which
instance does what next.

``curves`` and ``lengths`` hold what was measured, ``generation`` the time of continuous batching, ``allocation``
algorithm 1 and elastic growth, ``skew`` algorithm 2, ``dispatch`` the policies that simulator and trainer share,
``job`` the file of `stepstack plan rollout`. docs/streamrl.md has formulas and results. No torch.
"""
