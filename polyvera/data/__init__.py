"""Files to rows to batches."""
