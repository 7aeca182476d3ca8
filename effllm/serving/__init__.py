"""Models under load: traces of requests, engines that serve them, and the protocol of the measurement."""
