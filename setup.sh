#!/bin/sh
# Sets up tinyedge in .venv beside this file and runs it:
#
#   sh setup.sh demo      install, then the demo: a PyTorch checkpoint becomes a GGUF file and tells a story
#   sh setup.sh test      install with the test tools, then ruff, mypy and pytest
#   sh setup.sh install   install only
#
# The first run compiles llama-cpp-python for this machine's processor, about 3 minutes on 2 cores, and keeps the wheel in
# ~/.cache/tinyedge/wheels, under a name made of the compiler, its flags and the processor, so that it is never used where it does
# not belong. To skip that:
#
#   TINYEDGE_LLAMA_WHEEL=FILE.whl   install this llama-cpp-python wheel
#   TINYEDGE_LLAMA_INDEX=URL        take a prebuilt one from this package index
#   TINYEDGE_CMAKE_ARGS="..."       add to llama.cpp's build, e.g. -DGGML_CUDA=on
#   TINYEDGE_TORCH=VERSION          (test) also install torch and transformers and compare with them
#   TINYEDGE_BROWSER=1              (test) also fetch a Chromium, where root may install Debian's, and look at reports in it
#   TINYEDGE_EMULATION=1            (test) also build the boards' wheels and run them under qemu, many minutes the first time
set -eu
start=$PWD
cd "$(dirname "$0")"

LLAMA="llama-cpp-python>=0.3.36"
# What makes quantizing about three times faster: ggml compiles its base library without -march and with strict float order.
# -ffinite-math-only is left out on purpose: the kernels test for NaN and infinity.
FLAGS="-O3 -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math"
CC=${CC:-cc}

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

find_python() {
    for python in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "Python 3.10 or newer is needed; install it (apt install python3, brew install python) or name it with PYTHON=..."
}

# Debian splits venv's pip off into python3-venv; without it the pip wheel itself is fetched and run from the environment.
make_venv() {
    [ -x .venv/bin/pip ] && return
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    rm -rf .venv
    if ! "$python" -m venv .venv >/dev/null 2>&1; then
        rm -rf .venv
        "$python" -m venv --without-pip .venv || fail "cannot make a virtual environment; try: apt install python3-venv"
        .venv/bin/python - <<'PY' || fail "cannot fetch pip; try: apt install python3-venv"
import hashlib, html, os, pathlib, re, subprocess, sys, tempfile, urllib.parse, urllib.request

index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
page = urllib.request.urlopen(index, timeout=60).read().decode()
found = re.findall(r'href="([^"#]*/(pip-([\d.]+)-py3-none-any\.whl))#sha256=([0-9a-f]{64})"', page)
link, name, _, digest = max(found, key=lambda entry: tuple(map(int, entry[2].split("."))))
data = urllib.request.urlopen(urllib.parse.urljoin(index, html.unescape(link)), timeout=120).read()
if hashlib.sha256(data).hexdigest() != digest:
    sys.exit("the pip wheel has the wrong checksum")
with tempfile.TemporaryDirectory() as folder:
    wheel = pathlib.Path(folder) / name
    wheel.write_bytes(data)
    subprocess.run([sys.executable, f"{wheel}/pip", "install", "--quiet", "--no-index", str(wheel)], check=True)
PY
    fi
}

# The flags this compiler knows, the processor's own instructions first.
usable_flags() {
    case $(uname -m) in
    arm64 | aarch64 | armv*) native="-mcpu=native -march=native" ;;
    *) native="-march=native" ;;
    esac
    chosen=
    for flag in $native $FLAGS; do
        case " $chosen" in *=native*) case $flag in *=native) continue ;; esac ;; esac
        if echo 'int main(void) { return 0; }' | "$CC" "$flag" -x c -o /dev/null - >/dev/null 2>&1; then
            chosen="$chosen $flag"
        fi
    done
    echo "$chosen"
}

processor() {
    if [ -r /proc/cpuinfo ]; then
        grep -E '^(model name|flags|Features|CPU part)' /proc/cpuinfo | sort -u
    else
        sysctl -n machdep.cpu.brand_string
    fi
}

# Puts one build of llama-cpp-python into .venv, replacing another of the same version, which pip by itself would keep.
use_llama() {
    name=$1
    shift
    [ "$(cat .venv/llama-build 2>/dev/null)" = "$name" ] && return
    .venv/bin/pip install --quiet "$@"
    .venv/bin/pip install --quiet --force-reinstall --no-deps "$@"
    echo "$name" >.venv/llama-build
    say "llama.cpp: $name"
}

install_llama() {
    if [ -n "${TINYEDGE_LLAMA_WHEEL:-}" ]; then
        case $TINYEDGE_LLAMA_WHEEL in /*) ;; *) TINYEDGE_LLAMA_WHEEL=$start/$TINYEDGE_LLAMA_WHEEL ;; esac
        [ -r "$TINYEDGE_LLAMA_WHEEL" ] || fail "TINYEDGE_LLAMA_WHEEL names $TINYEDGE_LLAMA_WHEEL, which is not there"
        use_llama "$TINYEDGE_LLAMA_WHEEL ($(cksum <"$TINYEDGE_LLAMA_WHEEL"))" "$TINYEDGE_LLAMA_WHEEL"
        return
    fi
    if [ -n "${TINYEDGE_LLAMA_INDEX:-}" ]; then
        use_llama "from $TINYEDGE_LLAMA_INDEX" \
            --only-binary llama-cpp-python --extra-index-url "$TINYEDGE_LLAMA_INDEX" "$LLAMA"
        return
    fi
    command -v c++ >/dev/null && command -v "$CC" >/dev/null ||
        fail "a C++ compiler is needed to build llama.cpp; try: apt install g++ (macOS: xcode-select --install)"
    flags=$(usable_flags)
    args="-DCMAKE_C_FLAGS='$flags' -DLLAVA_BUILD=OFF ${TINYEDGE_CMAKE_ARGS:-}"
    key=$({ echo "$LLAMA $args"; "$CC" --version; uname -sm; processor; } | cksum | tr -d ' ')
    wheels=${XDG_CACHE_HOME:-$HOME/.cache}/tinyedge/wheels/$key
    if ! ls "$wheels"/llama_cpp_python-*.whl >/dev/null 2>&1; then
        mkdir -p "$wheels"
        say "building llama-cpp-python for this processor, about 3 minutes on 2 cores (log: $wheels/build.log)"
        # Into a folder of its own first, so that an interrupted build leaves no half wheel; and past pip's cache, which does not
        # look at CMAKE_ARGS.
        CMAKE_ARGS="$args" .venv/bin/pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python \
            --wheel-dir "$wheels/new" -v "$LLAMA" >"$wheels/build.log" 2>&1 ||
            { tail -n 20 "$wheels/build.log" >&2; fail "llama-cpp-python did not build; the whole log is $wheels/build.log"; }
        mv "$wheels"/new/llama_cpp_python-*.whl "$wheels"
    fi
    rm -rf "$wheels/new"
    use_llama "built for this processor with$flags ${TINYEDGE_CMAKE_ARGS:-}($key)" "$wheels"/llama_cpp_python-*.whl
}

install() {
    make_venv
    install_llama
    .venv/bin/pip install --quiet --editable ".${1:-}"
}

# llama.cpp's own converter, which the tests compare with: the sources of the llama-cpp-python that is installed.
reference_source() {
    [ -n "${TINYEDGE_LLAMA_SOURCE:-}" ] && return
    TINYEDGE_LLAMA_SOURCE=$(.venv/bin/python - <<'PY'
import tempfile
from pathlib import Path

from tinyedge_targets.cache import cache_folder
from tinyedge_targets.sdist import fetch_sdist, installed_version, unpack

sdist = fetch_sdist(installed_version(), cache_folder("logs") / "download.log")
kept = cache_folder("sources") / sdist.sha256[:16]
if not kept.is_dir():
    with tempfile.TemporaryDirectory(dir=kept.parent) as new:
        (unpack(sdist, Path(new)) / "vendor/llama.cpp").rename(kept)
print(kept)
PY
    ) || fail "the sources of llama-cpp-python could not be had"
    export TINYEDGE_LLAMA_SOURCE
}

# A browser for the tests of reports; they are skipped without one.
install_browser() {
    for browser in chromium chromium-browser google-chrome; do
        command -v "$browser" >/dev/null && return
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing chromium"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 ||
            say "chromium could not be installed: the tests of reports in a browser are skipped"
    fi
}

case ${1:-} in
install)
    install
    say "ready: .venv/bin/tinyedge --help"
    ;;
demo)
    install
    .venv/bin/tinyedge demo
    say "try your own: .venv/bin/tinyedge quantize CHECKPOINT, then .venv/bin/tinyedge run MODEL.gguf -p TEXT"
    ;;
test)
    install "[test,targets]"
    [ -z "${TINYEDGE_BROWSER:-}" ] || install_browser
    if [ -n "${TINYEDGE_TORCH:-}" ]; then
        .venv/bin/pip install --quiet "torch==$TINYEDGE_TORCH"
        .venv/bin/pip install --quiet --editable ".[reference]"
        reference_source
    fi
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    .venv/bin/pytest
    ;;
*)
    sed -n '2,18s/^# \{0,1\}//p' setup.sh >&2
    exit 2
    ;;
esac
