"""Files of a study and of a trial, the records in them, failure kinds, metrics and `Control`."""
