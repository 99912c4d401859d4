"""Files of data as bytes."""
