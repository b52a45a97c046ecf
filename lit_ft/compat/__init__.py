"""Private and undocumented APIs of other libraries, each with the reason for its use.

`tests/test_compat.py` fails when one of them changes upstream, and when another file uses one.
"""

from lit_ft.compat.libraries import (
    chunked_index,
    download_from_bucket,
    group_by_matcher,
    parsing_settings,
    reuse_image_memory,
)
from lit_ft.compat.lightning import (
    NO_INSTANTIATOR,
    attached_trainer,
    collect_constructor_arguments,
    collective_timeout,
    compression_of,
    epochs_done,
    keep_last_batch,
    leave_signals,
    log_repeatedly,
    resumes_with_validation,
    rewrap_ddp,
    setup_train_data,
    setup_validation_loaders,
    skip_empty_hooks,
    validate_first,
    writes_parts,
)
from lit_ft.compat.torch import (
    BATCH_NORM,
    INSTANCE_NORM,
    inner_schedulers,
    inner_states,
    is_compiled,
    loads_in_its_own_way,
    set_state_versions,
    state_versions,
)

__all__ = [
    "BATCH_NORM",
    "INSTANCE_NORM",
    "NO_INSTANTIATOR",
    "attached_trainer",
    "chunked_index",
    "collect_constructor_arguments",
    "collective_timeout",
    "compression_of",
    "download_from_bucket",
    "epochs_done",
    "group_by_matcher",
    "inner_schedulers",
    "inner_states",
    "is_compiled",
    "keep_last_batch",
    "leave_signals",
    "loads_in_its_own_way",
    "log_repeatedly",
    "parsing_settings",
    "resumes_with_validation",
    "reuse_image_memory",
    "rewrap_ddp",
    "set_state_versions",
    "setup_train_data",
    "setup_validation_loaders",
    "skip_empty_hooks",
    "state_versions",
    "validate_first",
    "writes_parts",
]
