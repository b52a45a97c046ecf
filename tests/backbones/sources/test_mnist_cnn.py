import hashlib

import torch

from lit_ft.backbones.sources import mnist_cnn


def test_weights_of_the_package_are_those_of_the_recipe_in_half_precision():
    published = mnist_cnn.tags("mnist_cnn")["MNIST"].read()
    state = mnist_cnn.fitted(torch.nn.Module(), published, mnist_cnn.input_spec("mnist_cnn", "MNIST"))
    assert {value.dtype for value in state.values()} == {torch.float16}
    content = b"".join(state[name].numpy().tobytes() for name in sorted(state))
    assert hashlib.sha256(content).hexdigest().startswith("98eb3398f644a444")
    whole = {name: value.float() for name, value in state.items()}  # as of a run of the recipe
    assert mnist_cnn.fitted(torch.nn.Module(), whole, mnist_cnn.input_spec("mnist_cnn", None)) == whole
