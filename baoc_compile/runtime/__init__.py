"""What lives as long as an optimizer: its session, compiled steps, configurator and checkpoints."""
