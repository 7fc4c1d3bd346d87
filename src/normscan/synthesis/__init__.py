"""Noises, masks, blends and synthetic lesions: functions of an image and a source of randomness."""
