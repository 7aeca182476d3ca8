"""What windows of a token stream are ordered by: measures of documents' difficulty, or a reference run's loss."""
