"""What lives as long as an optimizer: its session, its compiled steps, the configurator, its checkpoints."""
