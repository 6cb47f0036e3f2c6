"""Settings, each described once: flags, TOML keys, environment variables, help, reference and schema are made of it."""
