#!/usr/bin/env bash
# CANN's environment, then the command.
set_env=/usr/local/Ascend/ascend-toolkit/set_env.sh
# shellcheck disable=SC1090
[ -f "$set_env" ] && . "$set_env"
export LD_LIBRARY_PATH="/usr/local/Ascend/driver/lib64/driver:/usr/local/Ascend/driver/lib64/common:${LD_LIBRARY_PATH:-}"
exec ascend-vlm-quant "$@"
