"""The Feast repository: run `feast` from inside this folder."""
