"""What a run leaves behind: records in files, where they came from, tables and plots. No torch."""
