"""What a study's table says: significance, importance, cost, recommendation."""
