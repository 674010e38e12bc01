#!/usr/bin/env bash
# Fills the registry in Redis from a file of servers.
set -euo pipefail
lib=$(dirname -- "${BASH_SOURCE[0]}")/lib
# shellcheck source=scripts/lib/common.sh
. "$lib/common.sh"
# shellcheck source=scripts/lib/server_list.sh
. "$lib/server_list.sh"
# shellcheck source=scripts/lib/redis.sh
. "$lib/redis.sh"

usage() {
    cat <<'END'
Usage: init_redis.sh [OPTION...] SERVERS_FILE
       init_redis.sh [OPTION...] --show

Writes the servers of a file into Redis, where the nodes of nginx find them, and prints
the table of what is there then. SERVERS_FILE has one server a line; - is stdin:

  # the shop
  10.0.0.1:80
  10.0.0.2:80  weight=2 max_conns=50
  [fd00::3]:80 disabled

weight is 1 when not given (0: no new requests), max_conns 1000 (0: no limit). A line
that is wrong is named, and nothing is written.

  --redis URL       where Redis is, as in nginx.conf. Default: $REDIS_URL, then
                    redis://127.0.0.1:6379/0
  --cacert FILE     for rediss://: the CA certificates to trust. Default: the system's
  --prefix NAME     as redis_prefix in nginx.conf. Default: upstream
  --namespace NAME  the service that the servers belong to. Default: default
  --cluster         the prefix is written {NAME}, as nodes do in a Redis Cluster; a URL
                    that begins with redis+cluster:// means this too
  --keep            add to what is there. Of a server that is known, weight, max_conns
                    and whether it is disabled become what the file says
  --force           forget what is there, without asking
  --show            only print the table of servers, of all namespaces or of the one named
  -h, --help        this text

When the registry in Redis has servers, and neither --keep nor --force is given, it asks;
when it can't, because stdin is no terminal, it changes nothing. Forgetting means all
namespaces under the prefix, and all nodes do it; they serve what is written within one
redis_interval, and nothing until then. What is written is written in one step: no node
sees a half.

A server that sends no heartbeats leaves rotation after the registry's heartbeat_ttl.

Settings that come from the environment:
  REDIS_URL  the URL. One with a password is best given here: no process list shows it,
             and redis-cli gets the password by its own environment.
  TIMEOUT    seconds that each answer of Redis may take. Default: 5

Exit codes: 0 done; 1 Redis failed, the answer was no, or there was nobody to ask; 2 the
command line or a line of the file is wrong. In case 2, or of a no, nothing is changed.
END
}

url=${REDIS_URL:-redis://127.0.0.1:6379/0}
redis_timeout=${TIMEOUT:-5}
prefix=upstream namespace='' cluster=no how=ask file=
# Nobody below gets the password but redis-cli, by its own variable.
export -n REDIS_URL

while (($#)); do
    case $1 in
        --redis=* | --cacert=* | --prefix=* | --namespace=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case $1 in
        --redis | --cacert | --prefix | --namespace)
            [[ -n ${2-} ]] || die_usage "$1 needs a value"
            ;;&
        --redis) url=$2; shift ;;
        --cacert) redis_cacert=$2; shift ;;
        --prefix) prefix=$2; shift ;;
        --namespace) namespace=$2; shift ;;
        --cluster) cluster=yes ;;
        --keep | --force | --show)
            [[ $how == ask || $how == "${1#--}" ]] || die_usage "--$how and $1 do not go together"
            how=${1#--}
            ;;
        -h | --help) usage; exit 0 ;;
        -?*) die_usage "unknown argument: $1" ;;
        *)
            [[ -z $file ]] || die_usage "one file of servers, not two: $file and $1"
            file=$1
            ;;
    esac
    shift
done
[[ $prefix =~ ^[A-Za-z0-9._:-]{1,64}$ ]] || die_usage "--prefix must be 1 to 64 letters, digits, . _ : or -"
[[ $namespace =~ ^[A-Za-z0-9._-]{0,64}$ ]] || die_usage "--namespace must be 1 to 64 letters, digits, . _ or -"
[[ $redis_timeout =~ ^[0-9]+(\.[0-9]+)?$ ]] || die_usage "TIMEOUT must be seconds, not $redis_timeout"
[[ -z $redis_cacert || -r $redis_cacert ]] || die_usage "--cacert: can't read $redis_cacert"
if [[ $how == show ]]; then
    [[ -z $file ]] || die_usage "--show takes no file"
else
    [[ -n $file ]] || die_usage "which file of servers?"
fi
redis_url "$url"
unset url REDIS_URL
[[ $cluster == no && $redis_cluster == no ]] || prefix="{$prefix}" redis_cluster=yes
command -v redis-cli >/dev/null || die "redis-cli is not installed" "Debian: apt-get install redis-tools"

[[ -z $file ]] || read_servers "$file"

# --- what this script asks of Redis ------------------------------------------

# registry WHAT ARGUMENT...: runs lib/registry.lua; of write the last argument is stdin.
registry() {
    local what=$1 base=$prefix keys
    shift
    [[ ${namespace:-default} == default ]] || base+=:$namespace
    keys=("$prefix:sync:spaces" "$prefix:sync:epoch" "$prefix:sync:wiped")
    local options=()
    if [[ $what == write ]]; then
        keys+=("$base:servers:zset" "$base:servers:meta" "$base:heartbeat")
        options=(-x)
    fi
    redis_script ${options[@]+"${options[@]}"} EVAL "$(<"$lib/registry.lua")" "${#keys[@]}" "${keys[@]}" \
        "$what" "$prefix" "${namespace:-default}" "$@"
}

show() {
    registry show "$namespace"
    if [[ -z $answer ]]; then
        printf 'No servers under "%s" in Redis at %s\n' "$prefix" "$redis_name"
        return
    fi
    # A mark, which is one column however many bytes it has; then columns as wide as
    # their widest cell, numbers to the right.
    awk -F '\t' '
        { for (i = 2; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } mark[NR] = $1 }
        END {
            for (row = 1; row <= NR; row++) {
                line = mark[row]
                for (i = 2; i <= 7; i++)
                    line = line sprintf("  %" (i >= 4 ? "" : "-") width[i] "s", cell[row, i])
                sub(/ +$/, "", line)
                print line
            }
        }' <<<$' \tNAMESPACE\tSERVER\tCONNS\tWEIGHT\tMAX_CONNS\tHEARTBEAT\n'"$answer"
}

servers_are() { # NUMBER: "1 server", "2 servers"
    (($1 == 1)) && printf '1 server' || printf '%d servers' "$1"
}

redis_find
if [[ $how == show ]]; then
    show
    exit 0
fi
namespace=${namespace:-default}

# --- what is there, and whether it may go ------------------------------------

registry look
mapfile -t found <<<"$answer"
epoch=${found[0]}
found=("${found[@]:1}")
count=0
for line in ${found[@]+"${found[@]}"}; do
    count=$((count + ${line%% *}))
done

if [[ $how == ask && $count -gt 0 ]]; then
    {
        printf 'The registry "%s" in Redis at %s has %s:\n' "$prefix" "$redis_name" "$(servers_are "$count")"
        for line in "${found[@]}"; do
            printf '  %6d in namespace "%s"\n' "${line%% *}" "${line#* }"
        done
    } >&2
    [[ -t 0 ]] || die "nothing was changed: stdin is no terminal, so nobody can be asked" \
        "--force forgets these servers, --keep adds to them."
    reply=
    read -r -p "Forget all of them, in every namespace and on all nodes, and write $(servers_are ${#servers[@]}) into \"$namespace\"? [y/N] " reply || true
    [[ $reply =~ ^[[:space:]]*([Yy]|[Yy][Ee][Ss])[[:space:]]*$ ]] || die "nothing was changed"
    how=force
fi
case $how in
    ask) how=fill ;;
    # Where there is nothing, nothing is to be wiped, and there is no epoch to name.
    force) [[ $count == 0 && -z $epoch ]] && how=fill || how=wipe ;;
esac

# --- writing -----------------------------------------------------------------

private=()
if [[ $how == wipe ]]; then
    # Keys that bear the names of nodes. One that comes after this has a TTL.
    redis_scan "$prefix:sync:*"
    mapfile -t private <<<"$answer"
fi
redis_more='; --show tells whether it was done'
registry write "$how" "$epoch" "$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')" < <(
    printf -- '+%s\n' "${servers[@]}"
    printf -- '-%s\n' ${private[@]+"${private[@]}"}
)
redis_more=

[[ $how != wipe ]] || printf 'Forgot %s.\n' "$(servers_are "$count")"
printf 'Wrote %s into "%s" of the registry "%s" in Redis at %s:\n' \
    "$(servers_are ${#servers[@]})" "$namespace" "$prefix" "$redis_name"
if [[ $how == wipe && -z $epoch ]]; then
    warn "no node had used this Redis since it was empty: nodes that know other servers will write them again"
fi
show
