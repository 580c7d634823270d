"""A die served over TCP as a SCPI instrument."""
