"""Search: the best spec for a byte budget, beside uniform allocation and random search at the same cost."""
