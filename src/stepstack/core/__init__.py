"""Run, checkpoints, optimizers, launch: the only users of accelerate. No algorithm in here."""
