"""Files on disk: atomic writes, digests, format numbers, records, tables. Imports nothing else of the project."""
