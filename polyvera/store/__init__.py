"""Where adapters rest: files, the registry, and the way to and from PEFT."""
