"""Recipes: what is trained, a folder each."""

import stepstack  # noqa: F401  for `import recipes.x` in a project that has a package `data` of its own
