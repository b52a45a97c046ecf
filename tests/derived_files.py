"""Files of `lit_ft.data.files.derived_cache` whose content is another program's: valid, but of another kind."""

import json

from safetensors import safe_open
from safetensors.torch import save_file


def rewrite(path, change):
    """Changes the arrays and the facts of a file; ``change`` takes both, and changes them in place."""
    with safe_open(path, "pt") as file:
        arrays = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    facts = json.loads(metadata["facts"]) if "facts" in metadata else metadata
    change(arrays, facts)
    path.unlink()
    save_file(arrays, path, {"facts": json.dumps(facts)} if "facts" in metadata else facts)
