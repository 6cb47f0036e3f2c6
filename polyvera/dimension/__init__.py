"""The intrinsic dimension of a task: how few numbers reach a share of the score, by family."""
