"""What the processes of a run report to each other: collectives, reports to the supervisor, lines of one log."""
