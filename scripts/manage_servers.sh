#!/usr/bin/env bash
# Manages many registered servers at once. Needs bash 4.4 and curl; jq for status.
set -euo pipefail

usage() {
    cat <<'END'
Usage: manage_servers.sh COMMAND [SERVER...]

Commands:
  add SERVER...       register; of a server that is known, change what is given
  remove SERVER...    take out of the registry
  enable SERVER...    back into rotation; also ends a drain
  disable SERVER...   out of rotation until enabled, whatever its heartbeats say
  drain SERVER...     no new requests; those under way go on to their end
  weight SERVER...    give a new weight: HOST:PORT,weight=N (0: no new requests)
  refresh SERVER...   send one heartbeat
  status              a table of all servers (needs jq)
  status --json       the registry's own answer

A SERVER is HOST:PORT, or for add HOST:PORT,weight=N,max_conns=N. IPv6 goes in
brackets: [::1]:8080. A lone - stands for servers read from stdin, one a line;
empty lines and what follows a # are left out.

An added server that sends no heartbeats leaves rotation after the zone's
heartbeat_ttl (never when that is 0); heartbeat_client.sh sends them.

Settings come from the environment:
  BASE_URL    where nginx answers. Default: http://127.0.0.1
  API_PATH    the location of registry_api. Default: /upstream
  NAMESPACE   the service. Default: what the location says, or the zone's only one.
  TOKEN       sent as "Authorization: Bearer TOKEN". It shows in no process list.
  TIMEOUT     seconds that one request may take. Default: 5

Exit codes: 0 all done; 1 something failed (the other servers are done all the
same); 2 the command line or a setting is wrong, in which case nothing is done.

Example:
  export BASE_URL=http://127.0.0.1:8080 NAMESPACE=shop
  manage_servers.sh add 10.0.0.1:80 10.0.0.2:80,weight=2 '[fd00::3]:80,max_conns=50'
  manage_servers.sh status
END
}

wrong() {
    printf 'manage_servers.sh: %s\nTry --help.\n' "$1" >&2
    exit 2
}

BASE_URL=${BASE_URL:-http://127.0.0.1}
API_PATH=${API_PATH-/upstream}
NAMESPACE=${NAMESPACE-}
TOKEN=${TOKEN-}
TIMEOUT=${TIMEOUT:-5}
# curl gets the token through a pipe: neither its arguments nor its environment hold it.
export -n TOKEN

(($#)) || wrong "what is to be done?"
command=$1
shift
case $command in
    -h | --help | help)
        usage
        exit 0
        ;;
    add | remove | enable | disable | drain | weight | refresh | status) ;;
    *) wrong "unknown command: $command" ;;
esac
[[ $BASE_URL =~ ^https?://[^[:space:]]+$ ]] || wrong "BASE_URL must begin with http:// or https://, not $BASE_URL"
[[ $TIMEOUT =~ ^[0-9]+(\.[0-9]+)?$ ]] || wrong "TIMEOUT must be seconds, not $TIMEOUT"
[[ $TOKEN != *[$'\r\n']* ]] || wrong "TOKEN must be one line"
command -v curl >/dev/null || wrong "curl is not installed"

API_PATH=${API_PATH#/}
api=${BASE_URL%/}/${API_PATH:+${API_PATH%/}/}

# A string for curl's configuration file, where \ and " need a \.
quoted() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# ask METHOD ENDPOINT [NAME=VALUE...]: sets status (HTTP's; 000 when there was no
# answer), body, and message (the registry's, or curl's).
ask() {
    local method=$1 endpoint=$2 pair answer config
    shift 2
    config="url = $(quoted "$api$endpoint")"$'\n'
    [[ $method == POST ]] || config+="get"$'\n'
    [[ -z $TOKEN ]] || config+="header = $(quoted "Authorization: Bearer $TOKEN")"$'\n'
    for pair in ${NAMESPACE:+"ns=$NAMESPACE"} "$@"; do
        config+="data-urlencode = $(quoted "$pair")"$'\n'
    done
    answer=$(curl -sS --globoff --max-time "$TIMEOUT" -w '\n%{http_code}' --config - \
        < <(printf '%s' "$config") 2>&1) || true
    status=${answer##*$'\n'}
    [[ $status =~ ^[0-9]{3}$ ]] || status=000
    body=${answer%$'\n'*}
    if [[ $body =~ ^\{.*\"message\":\ *\"(([^\"\\]|\\.)*)\" ]]; then
        message=${BASH_REMATCH[1]//\\\"/\"}
    elif [[ $status == 000 ]]; then
        message=${body#curl: }
        message=${message//$'\n'/ }
        message=${message%"${message##*[![:space:]]}"}
    else
        message="the answer is not the registry's: is $api the right place?"
        # Somebody else's success is none of ours.
        [[ $status != 200 ]] || status=000
    fi
    [[ $status == 000 ]] || message="HTTP $status, $message"
}

# --- status ------------------------------------------------------------------

if [[ $command == status ]]; then
    case ${1-} in
        '' | --json) ;;
        *) wrong "status takes no servers, and of options only --json: $1" ;;
    esac
    if [[ $# -eq 0 ]] && ! command -v jq >/dev/null; then
        wrong "the table needs jq, which is not installed (apt-get install jq); status --json does without"
    fi
    ask GET status
    if [[ $status != 200 ]]; then
        printf 'manage_servers.sh: no status from %s: %s\n' "$api" "$message" >&2
        exit 1
    fi
    if [[ ${1-} == --json ]]; then
        printf '%s\n' "$body"
        exit 0
    fi
    rows=$(jq -r '
        def seconds: if . == null then "-" else "\(. * 10 | round / 10)s" end;
        def dash: if . == null or . == "" then "-" else . end;
        (["SERVER", "NAMESPACE", "STATE", "CONNS", "WEIGHT", "MAX_CONNS", "HEARTBEAT", "REQUESTS", "FAILS", "REASON"],
         (.data[] | [.addr, .namespace, .state, .connections, .weight,
                     (if .max_conns == 0 then "-" else .max_conns end),
                     (.time_since_heartbeat | seconds), .requests, .fails, (.disabled_reason | dash)]))
        | map(dash | tostring) | @tsv' <<<"$body") || {
        printf 'manage_servers.sh: the answer from %s is not a status\n' "$api" >&2
        exit 1
    }
    # Columns as wide as their widest cell; numbers to the right.
    awk -F '\t' '
        { for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } }
        END {
            for (row = 1; row <= NR; row++) {
                line = ""
                for (i = 1; i <= NF; i++)
                    line = line sprintf("%" (i >= 4 && i <= 9 ? "" : "-") width[i] "s  ", cell[row, i])
                sub(/ +$/, "", line)
                print line
            }
        }' <<<"$rows"
    exit 0
fi

# --- the commands that change something --------------------------------------

arguments=()
for argument in "$@"; do
    if [[ $argument == - ]]; then
        while IFS= read -r line || [[ -n $line ]]; do
            line=${line%%#*}
            line=${line//[[:space:]]/}
            [[ -z $line ]] || arguments+=("$line")
        done
    else
        arguments+=("$argument")
    fi
done
((${#arguments[@]})) || wrong "$command needs at least one server, HOST:PORT"

ipv6_address='^\[([0-9A-Fa-f:.]+)\]:([0-9]+)$'
plain_address='^([^][,:[:space:]]+):([0-9]+)$'
# split SERVER: sets host, port, weight and max_conns, or says what is wrong.
split() {
    local address=${1%%,*} options='' option
    [[ $1 != *,* ]] || options=${1#*,}
    host='' port='' weight='' max_conns=''
    if [[ $address =~ $ipv6_address || $address =~ $plain_address ]]; then
        host=${BASH_REMATCH[1]}
        port=${BASH_REMATCH[2]}
    elif [[ $address == *:*:* ]]; then
        wrong "$1: IPv6 goes in brackets, [ADDRESS]:PORT"
    else
        wrong "$1: a server is HOST:PORT"
    fi
    while [[ -n $options ]]; do
        option=${options%%,*}
        [[ $options == *,* ]] && options=${options#*,} || options=
        case $command:$option in
            add:weight=* | weight:weight=*) weight=${option#*=} ;;
            add:max_conns=*) max_conns=${option#*=} ;;
            *) wrong "$1: $command knows no $option here" ;;
        esac
        [[ ${option#*=} =~ ^[0-9]+$ ]] || wrong "$1: ${option%%=*} must be a whole number"
    done
    [[ $command != weight || -n $weight ]] || wrong "$1: say the new weight, $address,weight=N"
}

# All of the command line is checked before anything is changed.
for server in "${arguments[@]}"; do
    split "$server"
done

done_count=0
failed_count=0
for server in "${arguments[@]}"; do
    split "$server"
    parameters=("host=$host" "port=$port" ${weight:+"weight=$weight"} ${max_conns:+"max_conns=$max_conns"})
    case $command in
        enable | disable) ask POST toggle "${parameters[@]}" "action=$command" ;;
        *) ask POST "$command" "${parameters[@]}" ;;
    esac
    if [[ $status == 200 ]]; then
        done_count=$((done_count + 1))
        note=
        if [[ $command == drain && $body =~ \"connections\":\ *([0-9]+) ]]; then
            note=" (${BASH_REMATCH[1]} requests still on it)"
        fi
        printf '%s %s: done%s\n' "$command" "$server" "$note"
    else
        failed_count=$((failed_count + 1))
        printf '%s %s: failed: %s\n' "$command" "$server" "$message" >&2
    fi
done
if ((failed_count > 0)); then
    printf '%s: %d of %d servers failed\n' "$command" "$failed_count" "${#arguments[@]}" >&2
    exit 1
fi
