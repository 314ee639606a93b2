#!/bin/sh
# What wants a GPU, as far as ten minutes go: the tests, then what the shared trainer is measured by
# there.
#
#     benchmarks/gpu.sh [FOLDER]              default: gpu-results
#     MINUTES=30 benchmarks/gpu.sh            more of everything, and whether packing pays
#     STEPS="lanes packing" benchmarks/gpu.sh  those steps only
#     DEVICE=cpu benchmarks/gpu.sh            does the script work? Of tiny sizes, and no figures
#
# The most important comes first, and no step begins when the time is up. Each has a limit of its
# own; one that fails, or takes longer, stops no other. FOLDER/results.md is what RESULTS.md may
# take over, with the commands; what each step said is in FOLDER/<step>.txt.
# PYTHON names the interpreter (default: .venv/bin/python where there is one, else python3), and
# DATA_DIR the folder of Fashion-MNIST, which is left out where it is not there.
set -u
folder=$(realpath -m "${1:-gpu-results}")
cd "$(dirname "$0")/.." || exit 1
device=${DEVICE:-cuda}
minutes=${MINUTES:-10}
data=${DATA_DIR:-/usr/share/datasets/fashion-mnist}
if [ -x .venv/bin/python ]; then python=${PYTHON:-.venv/bin/python}; else python=${PYTHON:-python3}; fi
end=$(($(date +%s) + 60 * minutes))
times=$(((minutes + 9) / 10)) # repetitions
failed=0
missed=0
mkdir -p "$folder"
results=$folder/results.md
: >"$results"
export PYTHONUNBUFFERED=1 PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

say() { printf '%s\n' "$@" | tee -a "$results"; }

# step NAME SECONDS COMMAND…
step() {
    name=$1 limit=$2
    shift 2
    case " ${STEPS:-$name} " in *" $name "*) ;; *) return ;; esac
    left=$((end - $(date +%s)))
    [ "$limit" -le "$left" ] || limit=$left
    say "" "## $name" "" "    $*" ""
    if [ "$limit" -lt 5 ]; then
        say "Not begun: the time is up."
        missed=$((missed + 1))
        return
    fi
    began=$(date +%s)
    timeout -k 10 "$limit" "$@" >"$folder/$name.txt" 2>&1
    status=$?
    took=$(($(date +%s) - began))
    if [ "$name" = tests ]; then
        tail -n 15 "$folder/$name.txt" | sed 's/^/    /' | tee -a "$results"
    else
        grep -Ev '^(USDT:.*)?$' "$folder/$name.txt" | tail -n 40 | tee -a "$results"
    fi
    case $status in
    0) say "" "($took s)" ;;
    124 | 137) say "" "Stopped after $took s." ;;
    *) say "" "Failed with status $status after $took s." ;;
    esac
    [ "$status" -eq 0 ] || failed=$((failed + 1))
}

bench() { # NAME SECONDS SCRIPT ARGUMENT…
    name=$1 limit=$2 script=$3
    shift 3
    step "$name" "$limit" "$python" "benchmarks/$script" "$@" --device "$device"
}

say "# $(date '+%Y-%m-%d %H:%M')"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | tee -a "$results"
"$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)' 2>&1 |
    tee -a "$results"

deep="ViT(128, 16, patch 16)"
if [ "$device" = cpu ]; then
    deep="ViT(64, 6, patch 16)"
    timed="--images 600 --batch-size 16 --seconds 0.2"
    searched="--trials 2 --epochs 1 --train-size 300"
    estimated="--points 1 --processes 1 --batch-size 8 --train-images 80 --val-images 20"
    profiled="--batch-size 8"
    packed="--seconds 10 --train-size 300 --repetitions 1"
else
    timed="--seconds 2"
    searched="--space report --epochs 2 --train-size $((10000 * times))"
    estimated="--points 4 --processes 2"
    profiled=""
    packed="--seconds 45"
fi
# RESULTS.md is edited by who reads $folder.
generated="--append= --dataset cifar-shaped"

# shellcheck disable=SC2086 # those are several words each
{
    step tests $((180 * times)) "$python" -m pytest -m gpu -q -p no:cacheprovider --timeout 120 tests
    bench step 40 gpu_step.py --models "$deep" $profiled
    bench sweep $((150 * times)) throughput.py sweep --auto $generated $searched --repetitions 1
    bench lanes $((100 * times)) throughput.py lanes --models "$deep" --counts 1 8 $generated \
        $timed --repetitions "$times"
    bench seeds $((50 * times)) throughput.py seeds --models "$deep" --replicas 5 --workers 1 \
        $generated $timed --repetitions "$times"
    bench configs $((100 * times)) throughput.py configs --models "$deep" ConvNet --workers 4 \
        $generated $timed --repetitions "$times"
    bench estimates $((120 * times)) estimates.py $estimated
    if [ -d "$data" ]; then
        bench sweep-fashion-mnist $((180 * times)) throughput.py sweep --append= --auto --data-dir "$data" \
            $searched --repetitions 1
    fi
    # Five pairs of searches leave ten minutes for nothing else.
    if [ "$minutes" -ge 30 ] || [ "$device" = cpu ] || [ -n "${STEPS:-}" ]; then
        bench packing $((590 * times)) packing.py $packed
    fi
}
say "" "$failed step(s) failed, $missed not begun."
[ "$failed" -eq 0 ] && [ "$missed" -eq 0 ]
