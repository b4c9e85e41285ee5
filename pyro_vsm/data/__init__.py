"""Data sets, episodes and augmentation; this layer knows no model."""
