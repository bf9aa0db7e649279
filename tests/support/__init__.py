"""What tests share: stand-ins, small models, planted faults, places in the repository. No tests."""
