"""Settings, processes, devices and files. These modules do not depend on image data."""
