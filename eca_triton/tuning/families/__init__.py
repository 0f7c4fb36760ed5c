"""One file for each family of kernels: how it cuts a map, which of its configs may run, which are tried."""
