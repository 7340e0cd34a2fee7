"""Block-sparse attention of DSV (arXiv 2502.07590)."""
