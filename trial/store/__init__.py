"""What a study and a trial keep on disk, and the records in those files."""
