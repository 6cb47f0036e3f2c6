"""Training runs that come and go at any time, in the same batches."""
