"""stepstack: StepFun's published training systems as recipes that run."""

__version__ = "0.1.0"
