"""How things are measured: one module for each evaluation, beside its measurement in :mod:`attriboard.measurements`."""
