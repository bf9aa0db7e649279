"""What the user writes: settings of every stage, and the YAML file that holds them."""
