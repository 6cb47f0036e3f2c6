"""Methods side by side under one budget."""
