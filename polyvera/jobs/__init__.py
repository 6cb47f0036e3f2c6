"""Fine-tuning jobs of many tenants: what the server and the trainer's process both know of them."""
