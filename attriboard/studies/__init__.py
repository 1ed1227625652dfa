"""Questions that are no cells of a suite."""
