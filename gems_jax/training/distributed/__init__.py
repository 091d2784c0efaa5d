"""Several devices and processes: mesh, cluster, signals, watchdog."""
