"""The pipelines, one a file, each with its outputs."""
