"""What should happen: pure decisions, without a clock, a bus or a socket."""
