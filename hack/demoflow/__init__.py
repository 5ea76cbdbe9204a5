"""The demo, step by step: a cluster, the images, the chart, the quickstart, and what came of it."""
