"""`make gpu`: what one GPU can show of stepstack in nine minutes. The driver needs nothing but Python."""
