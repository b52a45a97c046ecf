#!/bin/bash
# Fine-tunes without a scheduler, on the GPUs of one machine or of several, as any recipe says.
#
#   lit-ft recipes torchrun.sh > torchrun.sh
#   bash torchrun.sh --config image_folder --data.root PHOTOS
#
# On several machines, start it on each, with the same RUN and the address of the first:
#
#   NODES=2 FIRST=node1:29500 RUN=flowers bash torchrun.sh --config ... --data.root PHOTOS
#
# A process that dies takes the others with it; all are started again, up to three times, and go on where they were.
PROCESSES=${PROCESSES:-gpu}      # a machine; a number on CPUs
NODES=${NODES:-1}

# A store for each start: else restarted processes may find there the addresses of those that are gone, and end.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

if [ "$NODES" = 1 ]; then
    place=(--standalone)
else
    : "${FIRST:?is the address of the first machine, as node1:29500}" "${RUN:?is a name, the same on all machines}"
    place=(--nnodes "$NODES" --rdzv_backend c10d --rdzv_endpoint "$FIRST" --rdzv_id "$RUN")
fi
exec torchrun --nproc_per_node "$PROCESSES" --max_restarts 3 "${place[@]}" -m lit_ft finetune "$@"
