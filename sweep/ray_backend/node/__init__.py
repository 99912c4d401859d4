"""The settings of an executor, and a Ray that is started on this machine."""
