"""What a job stands on: its folder, its progress, its processes."""
