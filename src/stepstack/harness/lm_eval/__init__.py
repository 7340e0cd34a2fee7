"""lm-evaluation-harness both ways: its tasks here, ours there."""
