"""One folder per backend, and what the backends of graphs share: decoders, parts, inputs."""
