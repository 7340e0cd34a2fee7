"""How: one page of verbs each. Loops never import each other."""
