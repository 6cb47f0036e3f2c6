"""Choosing: methods compared under one budget."""
