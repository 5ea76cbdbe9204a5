"""What is to be done about a run and what its status says: the pure core, without clock or network."""
