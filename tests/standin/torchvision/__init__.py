"""STAND-IN: optimum-habana imports it by name, for an image model that no test trains."""
