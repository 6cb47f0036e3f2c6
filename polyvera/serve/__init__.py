"""requests + adapters -> tokens: the engine, and the server in front of it."""
