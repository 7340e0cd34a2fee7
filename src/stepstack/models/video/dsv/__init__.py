"""DSV (arXiv 2502.07590): video attention that learns which keys matter, and leaves the others out."""
