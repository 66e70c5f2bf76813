"""The Detection-Adapter: the pyramid of a frozen UNet, and the head that reads boxes off it."""
