"""Published data sets, read where they are and written once in one checked form: prepare, then load."""
