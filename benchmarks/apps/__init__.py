"""What the benchmarks run in processes of their own: the publisher, and the services of the Python peers."""
