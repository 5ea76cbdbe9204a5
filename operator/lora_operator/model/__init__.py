"""What is known of a run and of the operator's settings, as plain frozen data."""
