# Places, processes and cases of the end-to-end suite. Sourced by run, content.sh, upstreams.sh and clients/*.sh.
# shellcheck shell=bash

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PROJECT=$(cd "$E2E/../.." && pwd)
# What is kept from run to run: tools by version, and the content that takes minutes to build.
E2E_HOME=${OCISTERN_E2E_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/ocistern-e2e}
OCISTERN_BIN=${OCISTERN_BIN:-${CARGO_TARGET_DIR:-$PROJECT/target}/release/ocistern}

# shellcheck source=tests/e2e/tools.sh
source "$E2E/tools.sh"

note() { printf '# %s\n' "$*"; }
die() {
    printf 'e2e: %s\n' "$*" >&2
    exit 1
}

# --- processes -------------------------------------------------------------------------------------------------------
# Everything runs in a process, network and mount namespace of its own (see run): what is left over at the end goes with
# it, ports never collide, and nothing can leave the machine.

# spawn NAME COMMAND…: starts it in the background; output in log/NAME.out and log/NAME.err, exit status in exit/NAME.
spawn() {
    local name=$1
    shift
    rm -f "$WORK/pid/$name" "$WORK/exit/$name"
    (
        "$@" >>"$WORK/log/$name.out" 2>>"$WORK/log/$name.err" </dev/null &
        echo $! >"$WORK/pid/$name"
        wait $! && status=0 || status=$?
        echo "$status" >"$WORK/exit/$name"
    ) >/dev/null 2>&1 </dev/null &
    for _ in {1..100}; do
        [[ -s $WORK/pid/$name ]] && return 0
        sleep 0.01
    done
    echo "$name was not started" >&2
    return 1
}

running() { [[ -s $WORK/pid/$1 && ! -s $WORK/exit/$1 ]]; }

# halt NAME [SIGNAL]: ends it and waits until it is gone; after 15 s it is killed, which is an error.
halt() {
    local name=$1 signal=${2:-TERM} pid
    [[ -s $WORK/pid/$name ]] || return 0
    pid=$(<"$WORK/pid/$name")
    kill "-$signal" "$pid" 2>/dev/null || true
    for _ in {1..300}; do
        if [[ -s $WORK/exit/$name ]]; then
            rm -f "$WORK/pid/$name"
            return 0
        fi
        sleep 0.05
    done
    kill -KILL "$pid" 2>/dev/null || true
    rm -f "$WORK/pid/$name"
    echo "$name did not end within 15 s of SIG$signal" >&2
    return 1
}

# wait_http NAME URL: until URL answers anything at all, 20 s at most.
wait_http() {
    local code
    for _ in {1..200}; do
        code=$(curl -s -o /dev/null -m 2 -w '%{http_code}' "$2" || true)
        [[ $code != 000 ]] && return 0
        running "$1" || break
        sleep 0.1
    done
    echo "$1 does not answer at $2:" >&2
    tail -n 20 "$WORK/log/$1.err" >&2
    return 1
}

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || {
            echo "not within the time: $*" >&2
            return 1
        }
        sleep 0.1
    done
}

# bounded COMMAND…: no client may hang the suite.
bounded() { timeout --kill-after=5 "${LIMIT:-120}" "$@"; }

# --- cases -----------------------------------------------------------------------------------------------------------

# try NAME FUNCTION [ARGUMENT…]: one case; it passes if the function ends well with every command in it succeeding.
try() {
    local name=$1 log pid status=0 began=$EPOCHREALTIME took
    shift
    mkdir -p "$WORK/case"
    log=$WORK/case/${name//[^a-zA-Z0-9._-]/_}.log
    # In the background, because `set -e` means nothing inside a condition.
    (
        set -euo pipefail
        shopt -s inherit_errexit
        "$@"
    ) >"$log" 2>&1 </dev/null &
    pid=$!
    wait "$pid" || status=$?
    took=$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    if ((status == 0)); then
        printf 'ok    %s (%s s)\n' "$name" "$took"
        echo ok >>"$WORK/results"
    else
        printf 'FAIL  %s (%s s, status %d)\n' "$name" "$took" "$status"
        tail -n 25 "$log" | sed 's/^/      | /'
        echo FAIL >>"$WORK/results"
    fi
    return 0
}

skip() {
    printf 'skip  %s\n' "$*"
    echo skip >>"$WORK/results"
}

# fails COMMAND…: it must not succeed. Not in a condition, where `set -e` means nothing to it. To hang until it is killed, or not
# to be there, is no way to fail.
fails() {
    local status=0
    (
        set -euo pipefail
        "$@"
    ) &
    wait $! || status=$?
    ((status != 0)) || {
        echo "this should have failed: $*" >&2
        return 1
    }
    ((status != 124 && status != 137 && status != 126 && status != 127)) || {
        echo "this should have failed by itself, and was killed or not there (status $status): $*" >&2
        return 1
    }
}

# is_gone DIGEST_OF REPOSITORY TAG: upstream says that it has it not. That upstream cannot be asked is no such word.
is_gone() {
    local digest
    digest=$("$@")
    none "digest of $2:$3 upstream" "$digest"
}

# same WHAT EXPECTED ACTUAL. Nothing is not expected: two commands that fail inside the arguments would be the same.
same() {
    [[ -n $2 && $2 == "$3" ]] || {
        printf '%s:\n  expected %s\n  got      %s\n' "$1" "$2" "$3" >&2
        return 1
    }
}

# none WHAT ACTUAL: there is nothing. ACTUAL is best a variable: what fails inside an argument says nothing, too.
none() {
    [[ -z $2 ]] || {
        printf '%s: expected none, got\n%s\n' "$1" "$2" >&2
        return 1
    }
}

# seen ARGUMENT…: `grep -q` that reads to the end, for what comes through a pipe: a program whose output nobody takes has failed.
seen() { grep "$@" | cat >/dev/null; }

# at_most WHAT LIMIT ACTUAL
at_most() {
    (($3 <= $2)) || {
        printf '%s: at most %s, got %s\n' "$1" "$2" "$3" >&2
        return 1
    }
}

# --- hashes ----------------------------------------------------------------------------------------------------------

digest_of() { printf 'sha256:%s\n' "$(sha256sum <"$1" | cut -d' ' -f1)"; }

# tree_of DIRECTORY: one digest over names and contents of all regular files.
tree_of() {
    (
        cd "$1" || exit 1
        find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum | sha256sum | sed 's/^/sha256:/; s/ .*//'
    )
}

# layout_blobs DIRECTORY: `blob DIGEST` for every blob of an OCI layout, after hashing it.
layout_blobs() {
    local file
    for file in "$1"/blobs/sha256/*; do
        same "blob ${file##*/} in $1" "sha256:${file##*/}" "$(digest_of "$file")" || return 1
        echo "blob sha256:${file##*/}"
    done
}
