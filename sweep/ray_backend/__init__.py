"""Jobs on Ray: workers, devices, ranks, and a local cluster."""
