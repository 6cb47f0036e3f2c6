"""Requests to tokens or vectors, in one process, without HTTP."""
