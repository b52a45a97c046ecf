"""The module that is trained: backbone, head and task, input normalisation, mixing and regularisation."""
