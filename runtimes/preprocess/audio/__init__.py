"""Sound to features: reading, resampling, log-mel spectrograms, waveforms."""
