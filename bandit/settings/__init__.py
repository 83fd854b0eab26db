"""Settings: one TOML file and the environment. Every default stands here."""
