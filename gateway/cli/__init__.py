"""The commands: what they ask of the command line and what they print. `config` defines the settings."""
