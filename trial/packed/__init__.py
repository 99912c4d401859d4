"""The job that trains several trials at once over one frozen base model."""
