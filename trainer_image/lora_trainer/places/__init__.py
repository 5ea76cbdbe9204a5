"""Where models and data come from, and where results go."""
