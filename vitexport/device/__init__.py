"""What a target can do: device profiles, checks that refuse what cannot work, and the doctor of this machine."""
