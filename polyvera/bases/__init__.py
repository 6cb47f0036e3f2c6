"""Bases that are made: the shared pair A, B from data, from gradients, or learned by a fleet."""
