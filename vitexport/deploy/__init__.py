"""Files for other servers and devices: a Triton repository, a DeepStream configuration, a device kit."""
