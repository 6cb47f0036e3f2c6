"""What is asked of a base model, each answer once."""
