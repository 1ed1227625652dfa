"""How sure a number is, and whether two differ; needs numpy and scipy alone."""
