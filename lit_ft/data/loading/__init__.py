"""Loading of batches: loaders, samplers and worker processes."""
