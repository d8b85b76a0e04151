"""One line in other people's projects: ``compat.transformers`` and ``compat.u2pl``, each imported by its own name."""
