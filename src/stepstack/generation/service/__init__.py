"""Generation in processes of its own: a trainer binds one socket, workers connect and pull work."""
