"""Reports of a run: records in files, their provenance, tables and plots."""
