"""The lm-eval tasks that ship: general ability that needs no download (see :mod:`attriboard.evaluation.capability`)."""
