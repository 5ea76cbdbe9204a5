"""What the client shows and changes, as pure functions of resources."""
