"""What is in a checkpoint, and loading of modules from one."""
