"""What lives as long as an optimizer: its session, its own step, configurator, audits and checkpoints."""
