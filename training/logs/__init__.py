"""The Parquet logs: schemas, reading, writing, archiving."""
