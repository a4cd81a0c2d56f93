"""The systems of the field under one interface: by name from `registry.create`, or as functions on features."""
