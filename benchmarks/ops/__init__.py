"""One file an op, under the op's own name: inputs, the call, and what else it is compared with."""
