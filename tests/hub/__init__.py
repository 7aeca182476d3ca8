"""A hub on loopback that fails on request, for tests of everything that downloads."""
