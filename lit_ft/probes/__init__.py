"""Probes: what the features of frozen backbones tell, without training; and `lit-ft probe`."""
