"""Programs that the client runs in pods: text that is sent along, on nothing but Python's standard library."""
