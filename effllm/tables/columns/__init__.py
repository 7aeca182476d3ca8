"""What the columns of each kind of table mean for a decision."""
