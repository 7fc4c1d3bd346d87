"""What every method must beat: no published system, but the line beneath the table."""
