"""Container images, made without a container engine: ``tritonize image``."""
