"""Self-tests of methods: what a method's definition implies, checked on tiny random models.

Every registered function in :mod:`.owed`, :mod:`.derivatives`, :mod:`.sums`, :mod:`.edges`, :mod:`.literal`,
:mod:`.zeros`, :mod:`.dependence` and :mod:`.controls` is one property. What a property compares with comes from plain
passes of the plain Hugging Face model (:mod:`.reference`), in float64 where it is a derivative.
"""

from .findings import Finding, examine
from .parametrize import parametrize_with_properties
from .properties import PROPERTIES

__all__ = ["PROPERTIES", "Finding", "examine", "parametrize_with_properties"]
