"""The project's own suite: what suite.toml names, each with its comparison."""
