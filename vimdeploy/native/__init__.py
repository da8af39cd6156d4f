"""Native code: where its sources and builds lie, how it is compiled."""
