"""The release, in its one place: packaging, both images and the chart take it from here or are checked against it."""

RELEASE = "0.1.0"
