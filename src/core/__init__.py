"""Settings, processes, devices and files. Nothing here knows about images."""
