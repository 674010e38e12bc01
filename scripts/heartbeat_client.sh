#!/usr/bin/env bash
# Keeps one server registered: run it beside the server. Needs bash 4.4 and curl.
set -euo pipefail

usage() {
    cat <<'END'
Usage: PORT=8080 [HOST=...] [BASE_URL=...] heartbeat_client.sh [--once] [--help]

Registers a server with the registry, keeps it alive with heartbeats, and takes it
out again when this client is told to stop (TERM or INT). Run one beside each server.

  --once   send one heartbeat (registering when not known) and leave; for cron

Settings come from the environment:
  PORT        the server's port. Required.
  HOST        its address. Default: the one this client's requests come from.
  INTERVAL    seconds between heartbeats, well below the zone's heartbeat_ttl,
              a third of it say. Fractions are allowed. Default: 10
  BASE_URL    where nginx answers. Default: http://127.0.0.1
  API_PATH    the location of registry_api. Default: /upstream
  NAMESPACE   the service that the server belongs to. Default: what the location
              says, or the zone's only namespace.
  TOKEN       sent as "Authorization: Bearer TOKEN". It shows in no process list.
  WEIGHT, MAX_CONNS
              sent when the server is registered. One that is known already keeps
              what it has: scripts/manage_servers.sh changes it.
  TIMEOUT     seconds that one request may take. Default: 5
  VERBOSE     1: a log line for each heartbeat, not only for what changes.

A heartbeat that fails is tried again soon, then less and less often, by chance
spread over time, at least once each INTERVAL. A server that the registry does not
know, or has removed, is registered again: to take a running one out of rotation,
disable it.

Exit codes:
  0  stopped by a signal, the server is deregistered (--once: the heartbeat got through)
  1  stopped by a signal, but the registry could not be told (--once: it did not get through)
  2  a setting is missing or wrong, or there is no curl
  3  the registry refused the very first request as wrong (HTTP 400 or 405)
END
}

log() { printf '%(%Y-%m-%d %H:%M:%S)T %s\n' -1 "$*"; }
wrong() {
    printf 'heartbeat_client.sh: %s\nTry --help.\n' "$1" >&2
    exit 2
}

once=no
while (($#)); do
    case $1 in
        --once) once=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) wrong "unknown argument: $1 (settings come from the environment)" ;;
    esac
    shift
done

HOST=${HOST-}
PORT=${PORT-}
INTERVAL=${INTERVAL:-10}
BASE_URL=${BASE_URL:-http://127.0.0.1}
API_PATH=${API_PATH-/upstream}
NAMESPACE=${NAMESPACE-}
TOKEN=${TOKEN-}
WEIGHT=${WEIGHT-}
MAX_CONNS=${MAX_CONNS-}
TIMEOUT=${TIMEOUT:-5}
VERBOSE=${VERBOSE:-0}
# curl gets the token through a pipe: neither its arguments nor its environment hold it.
export -n TOKEN

seconds='^([0-9]+)(\.([0-9]{1,3})[0-9]*)?$'
# to_ms SECONDS: whole milliseconds, or nothing when it is no number.
to_ms() {
    local fraction
    [[ $1 =~ $seconds ]] || return 0
    fraction=${BASH_REMATCH[3]-}000
    printf '%s' $((10#${BASH_REMATCH[1]} * 1000 + 10#${fraction:0:3}))
}

[[ -n $PORT ]] || wrong "PORT is not set"
if [[ ! $PORT =~ ^[0-9]{1,5}$ ]] || ((10#$PORT < 1 || 10#$PORT > 65535)); then
    wrong "PORT must be 1 to 65535, not $PORT"
fi
interval_ms=$(to_ms "$INTERVAL")
((${interval_ms:-0} >= 100)) || wrong "INTERVAL must be seconds, at least 0.1, not $INTERVAL"
timeout_ms=$(to_ms "$TIMEOUT")
((${timeout_ms:-0} > 0)) || wrong "TIMEOUT must be seconds above 0, not $TIMEOUT"
[[ -z $WEIGHT || $WEIGHT =~ ^[0-9]+$ ]] || wrong "WEIGHT must be a whole number, not $WEIGHT"
[[ -z $MAX_CONNS || $MAX_CONNS =~ ^[0-9]+$ ]] || wrong "MAX_CONNS must be a whole number, not $MAX_CONNS"
[[ $BASE_URL =~ ^https?://[^[:space:]]+$ ]] || wrong "BASE_URL must begin with http:// or https://, not $BASE_URL"
[[ $TOKEN != *[$'\r\n']* ]] || wrong "TOKEN must be one line"
command -v curl >/dev/null || wrong "curl is not installed"

API_PATH=${API_PATH#/}
api=${BASE_URL%/}/${API_PATH:+${API_PATH%/}/}
name=${HOST:-(this host)}:$PORT
[[ $HOST != *:* || $HOST == \[* ]] || name="[$HOST]:$PORT"
name+=${NAMESPACE:+ in $NAMESPACE}

# A string for curl's configuration file, where \ and " need a \.
quoted() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

stopping=no # or the name of the signal that says so
child=      # the process that is being waited for
# shellcheck disable=SC2317  # called by the traps
stop() {
    stopping=$1
    [[ -z $child ]] || kill "$child" 2>/dev/null || true
}
trap 'stop TERM' TERM
trap 'stop INT' INT

# wait, unlike a command in the foreground, ends when a signal comes. A signal that
# came before the child was known is seen here. Deregistering is what it asks for,
# so that goes on.
wait_for_child() {
    [[ $stopping == no || $1 == remove ]] || kill "$child" 2>/dev/null || true
    wait "$child" || true
    child=
}

# ask ENDPOINT [NAME=VALUE...]: sets status (HTTP's; 000 when there was no answer)
# and message. Comes back early when a signal says to stop.
status=000
message=
ask() {
    local endpoint=$1 pair answer fd config
    shift
    config="url = $(quoted "$api$endpoint")"$'\n'
    [[ -z $TOKEN ]] || config+="header = $(quoted "Authorization: Bearer $TOKEN")"$'\n'
    for pair in ${HOST:+"host=$HOST"} "port=$PORT" ${NAMESPACE:+"ns=$NAMESPACE"} "$@"; do
        config+="data-urlencode = $(quoted "$pair")"$'\n'
    done
    exec {fd}< <(exec curl -sS --globoff --max-time "$TIMEOUT" -w '\n%{http_code}' --config - \
        < <(printf '%s' "$config") 2>&1)
    child=$!
    wait_for_child "$endpoint"
    IFS= read -r -d '' -u "$fd" answer || true
    exec {fd}<&-

    status=${answer##*$'\n'}
    [[ $status =~ ^[0-9]{3}$ ]] || status=000
    message=${answer%$'\n'*}
    if [[ $message =~ \"message\":\ *\"(([^\"\\]|\\.)*)\" ]]; then
        message=${BASH_REMATCH[1]//\\\"/\"}
    elif [[ $status != 000 ]]; then
        message="the answer is not the registry's: is $api the right place?"
        # Somebody else's success is none of ours.
        [[ $status != 200 ]] || status=000
    fi
    message=${message//$'\n'/ }
    message=${message#curl: }
    message=${message%"${message##*[![:space:]]}"}
}

# pause MS: ends at once when a signal comes.
pause() {
    sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))" &
    child=$!
    wait_for_child sleep
}

# Sets delay to a whole number of ms between LOW and HIGH, by chance.
spread() { delay=$(($1 + (RANDOM * 32768 + RANDOM) % ($2 - $1 + 1))); }

# One heartbeat, by refresh or, for a server that is not known, add. Sets result:
# ok, registered, or failed.
beat() {
    result=failed
    ask refresh
    case $status in
        200) result=ok ;;
        404)
            [[ $stopping == no ]] || return 0
            ask add ${WEIGHT:+"weight=$WEIGHT"} ${MAX_CONNS:+"max_conns=$MAX_CONNS"}
            case $status in
                200) result=registered ;;
                # Someone else registered it in between: the next refresh will find it.
                409) result=ok ;;
            esac
            ;;
    esac
}

log "heartbeats for $name to $api every ${INTERVAL}s"
ever=no  # has a heartbeat ever got through?
fails=0
while [[ $stopping == no ]]; do
    beat
    [[ $stopping == no ]] || break

    if [[ $result == failed ]]; then
        fails=$((fails + 1))
        if [[ $ever == no && ($status == 400 || $status == 405) ]]; then
            log "refused: HTTP $status, $message"
            exit 3
        fi
        # 0.5 s, 1 s, 2 s ... and never longer than a heartbeat's interval.
        delay=$((fails <= 16 ? 500 << (fails - 1) : interval_ms))
        ((delay <= interval_ms)) || delay=$interval_ms
        spread $((delay / 2)) "$delay"
        reason="HTTP $status, $message"
        [[ $status != 000 ]] || reason=${message:-no answer}
        if [[ $once == yes ]]; then
            log "failed: $reason"
            exit 1
        fi
        log "failed ($fails): $reason; next try in $((delay / 1000)).$((delay % 1000 / 100))s"
    else
        if [[ $result == registered ]]; then
            log "registered $name"
        elif ((fails > 0)); then
            log "heartbeats get through again, after $fails that failed"
        elif [[ $ever == no ]]; then
            log "$name is registered already, heartbeat accepted"
        elif [[ $VERBOSE == 1 ]]; then
            log "heartbeat accepted"
        fi
        ever=yes
        fails=0
        [[ $once == no ]] || exit 0
        # A little by chance, so that servers started together do not beat together.
        spread $((interval_ms * 9 / 10)) "$interval_ms"
    fi
    pause "$delay"
done

# --- stopped by a signal -----------------------------------------------------

log "got $stopping, deregistering $name"
# A second signal ends it at once; the zone's heartbeat_ttl then does the rest.
trap - TERM INT
# What stops services seldom waits longer than 10 seconds.
deadline=$((SECONDS + 4))
for try in 1 2 3; do
    if ((try > 1)); then
        ((SECONDS < deadline)) || break
        sleep 0.5
    fi
    ask remove
    case $status in
        200)
            log "deregistered"
            exit 0
            ;;
        404)
            log "it was not registered"
            exit 0
            ;;
        409)
            log "it stays: $message"
            exit 0
            ;;
    esac
done
[[ $status == 000 ]] || message="HTTP $status, $message"
log "could not deregister: ${message:-no answer}; it will expire by itself"
exit 1
