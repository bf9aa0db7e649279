"""What a target can do: device profiles, and checks that refuse what cannot work before anything is built."""
