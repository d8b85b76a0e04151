"""Use the fused losses in other projects: import ``compat.transformers`` or ``compat.u2pl``."""
