"""Several engines of one model, each in a process of its own, behind the methods of one engine."""
