"""Thinking Machines' Tinker API: training and sampling call by call, as its Python SDK asks for it."""
