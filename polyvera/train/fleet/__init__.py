"""Many adapters in the same batches."""
