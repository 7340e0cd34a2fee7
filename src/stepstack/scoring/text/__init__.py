"""How near one text is to another."""
