"""The worker: claims jobs, advances them together on one device, hands out what they produce."""
