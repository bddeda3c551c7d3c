#!/bin/sh
# Installs tinyedge from this folder. No network, no compiler, no root needed.
#
#   sh install.sh                  into ~/.local: the program in ~/.local/share/tinyedge/venv, the command in ~/.local/bin
#   sh install.sh --prefix DIR     the same under DIR
#   PYTHON=FILE sh install.sh      with this Python
#
# Run it again to repair or, from a newer folder, to upgrade. The new installation is made beside the old one and takes its
# place when it has started once; until then, whatever happens, the old one stays as it is.
set -eu
umask 022
unset CDPATH PYTHONPATH PYTHONHOME PYTHONSTARTUP
# pip reads no settings of this system: everything comes from this folder.
PIP_CONFIG_FILE=/dev/null
export PIP_CONFIG_FILE

# What this folder was made for; filled in by `tinyedge wheel --bundle`.
@FACTS@

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$here/install.sh" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd -P)
prefix=
while [ $# -gt 0 ]; do
    case $1 in
    --prefix) [ $# -gt 1 ] || usage; prefix=$2; shift 2 ;;
    --prefix=*) prefix=${1#--prefix=}; shift ;;
    *) usage ;;
    esac
done
if [ -z "$prefix" ]; then
    [ -n "${HOME:-}" ] || fail "HOME is not set; say where to install with --prefix DIR"
    prefix=$HOME/.local
fi
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
case ${PYTHON:-} in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac
share=$prefix/share/tinyedge
link=$prefix/bin/tinyedge
new=

# The checks, before anything is written.

check_files() {
    cd "$here"
    [ -r SHA256SUMS ] || fail "$here has no SHA256SUMS; unpack the archive again and run the install.sh inside"
    if command -v sha256sum >/dev/null 2>&1; then
        sums="sha256sum"
    elif command -v shasum >/dev/null 2>&1; then
        sums="shasum -a 256"
    else
        fail "neither sha256sum nor shasum is here to check the files with; install coreutils"
    fi
    while read -r _ name; do
        [ -r "$name" ] || fail "$name is missing; copy the archive again and unpack it again"
    done <SHA256SUMS
    if ! told=$($sums -c SHA256SUMS 2>&1); then
        damaged=$(printf '%s\n' "$told" | sed -n 's/: FAILED.*//p' | head -n 1)
        fail "${damaged:-a file} is damaged; copy the archive again and unpack it again"
    fi
    id=$($sums SHA256SUMS | cut -c 1-12)
}

# version, machine as that Python sees it, bits, C library: of the Python, which is what the wheels must suit.
facts_of() {
    "$1" -I -c '
import os, struct, sys
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION").split()[-1]
except (AttributeError, OSError, ValueError):
    libc = "none"
print("%d.%d" % sys.version_info[:2], os.uname()[4], 8 * struct.calcsize("P"), libc)
' 2>/dev/null
}

find_python() {
    seen=
    if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- "python$NEED_PYTHON" python3; fi
    for python; do
        facts=$(facts_of "$python") || continue
        seen=${facts%% *}
        [ "$seen" != "$NEED_PYTHON" ] || return 0
    done
    [ -n "$seen" ] ||
        fail "Python $NEED_PYTHON is needed and $python does not start;" \
            "install it (apt install python3) or name one with PYTHON=FILE"
    check_machine
    fail "Python $NEED_PYTHON is needed and $python is Python $seen; name another with PYTHON=FILE," \
        "or make a new bundle with: tinyedge wheel --board $BOARD --python $seen --bundle"
}

check_machine() {
    # shellcheck disable=SC2086
    set -- $facts
    machine=$2
    libc=$4
    if [ "$3" = 32 ]; then
        case $machine in aarch64 | armv8*) machine=armv7l ;; x86_64) machine=i686 ;; esac
    fi
    [ "$machine" = "$NEED_MACHINE" ] ||
        fail "this bundle is for $NEED_MACHINE ($BOARD) and this system is $machine ($3-bit);" \
            "make another with: tinyedge wheel --board NAME --bundle"
}

check_glibc() {
    if [ -n "$NEED_GLIBC" ]; then
        [ "$libc" != none ] ||
            fail "this system has no glibc and the wheels need $NEED_GLIBC; use a system that has it, such as Debian"
        older=$(printf '%s\n%s\n' "$libc" "$NEED_GLIBC" | sort -t . -k 1,1n -k 2,2n | head -n 1)
        [ "$older" = "$NEED_GLIBC" ] ||
            fail "the wheels need glibc $NEED_GLIBC and this system has $libc;" \
                "upgrade the system, or make a bundle for a board whose system has $libc"
    fi
}

check_place() {
    { mkdir -p "$share" "$prefix/bin" && [ -w "$share" ] && [ -w "$prefix/bin" ]; } 2>/dev/null ||
        fail "$prefix cannot be written; choose another folder with --prefix DIR"
    if [ -e "$link" ] || [ -h "$link" ]; then
        case $(readlink "$link" 2>/dev/null) in
        "$share"/*) ;;
        *) fail "$link is there and not of this script's making; move it away or choose another folder with --prefix DIR" ;;
        esac
    fi
}

check_space() {
    free=$(df -Pk "$share" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$NEED_KIB" ] ||
        fail "the installation needs $((NEED_KIB / 1024 + 1)) MiB and $share has $((free / 1024)) MiB free;" \
            "free some space or choose another disk with --prefix DIR"
}

# The installation.

leave() {
    code=$?
    trap - EXIT
    [ -z "$new" ] || rm -rf "$new"
    exit "$code"
}

# What an interrupted run left behind: its number is in the name and no such process runs any more.
remove_leftovers() {
    for folder in "$share"/venv-*; do
        if [ -d "$folder" ] && [ ! -e "$folder/complete" ] && ! kill -0 "${folder##*-}" 2>/dev/null; then
            rm -rf "$folder"
        fi
    done
}

works() { [ -e "$1/complete" ] && { "$1/bin/python" -I -m tinyedge --version; } >/dev/null 2>&1; }

make_new() {
    new=$share/venv-$id-$$
    rm -rf "$new"
    trap leave EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    "$python" -I -m venv --without-pip "$new" ||
        fail "no virtual environment could be made in $new; try: apt install python3-venv"
    set --
    while read -r _ name; do
        case $name in wheels/pip-*) pip=$name ;; wheels/*) set -- "$@" "./$name" ;; esac
    done <SHA256SUMS
    # Compiled files are made when a module is first used: an SD card is slow, and most modules never are.
    "$new/bin/python" -I "./$pip/pip" install --isolated --quiet --no-index --no-cache-dir --no-compile \
        --disable-pip-version-check --no-warn-script-location --root-user-action ignore --progress-bar off "$@" ||
        fail "the wheels could not be installed; pip's message above says why"
    code=0
    told=$(exec 2>&1; "$new/bin/python" -I -m tinyedge --version || exit $?) || code=$?
    [ "$code" != 132 ] || fail "the wheel was built for a newer processor than this one; make a bundle for this very board"
    [ "$code" = 0 ] ||
        fail "the new installation does not start ($(printf '%s\n' "$told" | tail -n 1), exit code $code);" \
            "prove its wheel, where it was made, with: tinyedge wheel verify"
    sync # a board may lose its power at any time: first the files, then the mark that they are all there
    : >"$new/complete"
}

# Each of the two links is replaced in one step, so that there is always a command that works.
switch_to() {
    "$python" -I -c '
import os, sys
for target, name in zip(sys.argv[1::2], sys.argv[2::2]):
    temporary = "%s.%d" % (name, os.getpid())
    os.symlink(target, temporary)
    os.replace(temporary, name)
' "${1##*/}" "$share/venv" "$share/venv/bin/tinyedge" "$link" ||
        fail "$share/venv could not be replaced; remove it and run this script again"
    new=
    for folder in "$share"/venv-*; do
        if [ "$folder" != "$1" ] && [ -e "$folder/complete" ]; then rm -rf "$folder"; fi
    done
}

check_files
find_python
check_machine
check_glibc
check_place
remove_leftovers
current=$share/$(readlink "$share/venv" 2>/dev/null) || current=
case $current in
"$share/venv-$id-"*)
    if works "$current" && [ -h "$link" ]; then say "tinyedge is installed already."; else current=; fi
    ;;
*) current= ;;
esac
if [ -z "$current" ]; then
    say "installing tinyedge for $BOARD into $share ..."
    check_space
    make_new
    switch_to "$new"
    say "$told"
fi

command=tinyedge
case ":${PATH:-}:" in
*":$prefix/bin:"*) ;;
*) command=$link ;;
esac
quoted() {
    case $1 in
    *[!A-Za-z0-9_./+-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s' "$1" ;;
    esac
}
say
say "Now:"
say "  $(quoted "$command") run $(if [ -n "$MODEL" ]; then quoted "$here/$MODEL"; else echo demo; fi) -p \"Once upon a time\""
if [ "$command" != tinyedge ]; then
    say "To have the command as tinyedge, put this line into ~/.profile:"
    say "  PATH=$(quoted "$prefix/bin"):\$PATH"
fi
