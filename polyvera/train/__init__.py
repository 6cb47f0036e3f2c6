"""From a recipe and data to adapters."""
