# shellcheck shell=bash
# What the scripts beside this directory share. Sourced, never run.

# The top of the repository, whatever directory the script was called from.
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
readonly ROOT

# Messages go to stderr, so that stdout holds only what another script may read.
say() { printf '==> %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf '%s: error: %s\n' "$(basename -- "$0")" "$1" >&2
    shift
    if (($#)); then
        printf '    %s\n' "$@" >&2
    fi
    exit 1
}
die_usage() {
    printf '%s: %s\nTry --help.\n' "$(basename -- "$0")" "$1" >&2
    exit 2
}

# version_at_least HAVE WANTED: dotted numbers, compared number by number.
version_at_least() {
    [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# The lowest rustc that Cargo.toml asks for; empty when it names none.
wanted_rust() {
    sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$ROOT/Cargo.toml" 2>/dev/null | head -n 1
}

# Looks for cargo where rustup puts it when PATH does not name that place, and
# says what to do when there is none or when rustc is too old for this crate.
need_rust() {
    local wanted have
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    wanted=$(wanted_rust)
    if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
        die "cargo and rustc are not installed" \
            "Rust ${wanted:-1.81} or newer is needed. https://rustup.rs says how to get it in one command;" \
            "Debian 12's own rustc (1.63) is too old."
    fi
    have=$(rustc --version | cut -d' ' -f2)
    if [[ -n $wanted ]] && ! version_at_least "${have%%-*}" "$wanted"; then
        die "rustc $have ($(command -v rustc)) is too old: Rust $wanted or newer is needed" \
            "With rustup: rustup update stable"
    fi
}

# find_nginx: the nginx to build for when none is named. Debian keeps it in a
# directory that is not in everybody's PATH.
find_nginx() {
    local candidate
    for candidate in "$(command -v nginx || true)" /usr/sbin/nginx /usr/local/nginx/sbin/nginx; do
        if [[ -n $candidate && -x $candidate ]]; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}
