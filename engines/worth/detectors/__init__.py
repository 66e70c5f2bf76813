"""Object detectors of libraries behind one small interface: built from settings, trained, saved, asked."""
