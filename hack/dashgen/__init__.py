"""The chart's Grafana dashboards, from a description of each: fleet.py and run.py. board.py knows Grafana's JSON."""
