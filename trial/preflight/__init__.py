"""What can be known of a trial before it starts: mistakes, memory."""
