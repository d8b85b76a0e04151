"""``python -m u2pl_fast.doctor``: everything that is wrong with a data set, before a training finds it one by one."""
