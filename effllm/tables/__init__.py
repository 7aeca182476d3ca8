"""Tables: pure functions of artifacts."""
