"""Draw figures and write tables from the results."""
