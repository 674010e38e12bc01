# shellcheck shell=bash
# What the demos share: nginx with the module, servers, traffic, and claims that are
# checked. Sourced by scripts/demo after common.sh, with these set:
#   nginx, build_args   the nginx to use, and what scripts/build is told about it
#   server_names        the servers that the demo starts, in order
# shellcheck disable=SC2154

# --- what is started here, and how it ends -----------------------------------

dir=
failed=no
# Leaders of the process groups that were started: each a server with its heartbeats.
declare -A group=()
# The nodes of nginx by name, and which of them is talked to: `at NODE COMMAND` says
# another for one command.
declare -A url=()
node=
at() {
    local node=$1
    shift
    "$@"
}

kill_group() { # NAME SIGNAL
    [[ -z ${group[$1]-} ]] || kill "-$2" -- "-${group[$1]}" 2>/dev/null || true
}

# shellcheck disable=SC2317  # called by the traps
clean_up() {
    local code=$? name
    trap - EXIT
    trap '' INT TERM HUP
    for name in "${!group[@]}"; do
        kill_group "$name" TERM
    done
    for name in "${!url[@]}"; do
        at "$name" stop_nginx || true
    done
    for name in "${!group[@]}"; do
        kill_group "$name" KILL
    done
    if [[ -n $dir ]]; then
        for name in "${!url[@]}"; do
            if [[ $code == 1 && -s $dir/$name/error.log ]]; then
                printf '\nThe last lines of nginx (%s):\n' "$name" >&2
                tail -n 20 "$dir/$name/error.log" >&2
            fi
        done
        rm -rf -- "$dir"
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# Fails when nginx had to be told twice.
stop_nginx() {
    local pid i
    pid=$(cat "$dir/$node/nginx.pid" 2>/dev/null || true)
    [[ -n $pid ]] || return 0
    kill -QUIT "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -TERM "$pid" 2>/dev/null || true
    sleep 0.5
    return 1
}

# --- what is said and checked ------------------------------------------------

step() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[[ -t 1 ]] || step() { printf '\n%s\n' "$*"; }

# claim TEXT COMMAND...: the command must succeed for the text to be true.
claim() {
    local text=$1
    shift
    if "$@"; then
        printf '  [ok] %s\n' "$text"
    else
        printf '  [NOT SO] %s\n' "$text"
        failed=yes
    fi
}

# within SECONDS COMMAND...: tries until it succeeds; sets waited to the time, in
# tenths of a second.
waited=0
within() {
    local limit=$(($1 * 10)) start now
    shift
    start=${EPOCHREALTIME//[.,]/}
    while ! "$@"; do
        now=${EPOCHREALTIME//[.,]/}
        (((now - start) / 100000 < limit)) || return 1
        sleep 0.1
    done
    now=${EPOCHREALTIME//[.,]/}
    waited=$(((now - start) / 100000))
}
seconds() { printf '%d.%d seconds' $(($1 / 10)) $(($1 % 10)); }

# claim_soon SECONDS TEXT COMMAND...: the same for what takes its time, which is said.
claim_soon() {
    local limit=$1 text=$2
    shift 2
    if within "$limit" "$@"; then
        ((waited == 0)) && text="at once $text" || text="$(seconds "$waited") later $text"
        claim "$text" true
    else
        claim "within $limit seconds $text" false
    fi
}

all_was_as_said() {
    local name
    for name in "${!url[@]}"; do
        claim "nginx${url[two]:+ ($name)} has logged nothing alarming" at "$name" clean_log
    done
    echo
    [[ $failed == no ]] || die "not everything was as said (see NOT SO above)"
}
clean_log() { ! grep -E '\[(alert|emerg)\]|panicked' "$dir/$node/error.log" >&2; }

# --- nginx -------------------------------------------------------------------

build() {
    local built
    say "building the module (the first time takes a minute or two)"
    built=$("$ROOT/scripts/build" ${build_args[@]+"${build_args[@]}"}) || exit 1
    mapfile -t built <<<"$built"
    module=${built[-1]}
    if ((${#built[@]} > 1)); then
        nginx=${built[-2]}
    elif [[ -z $nginx ]]; then
        nginx=$(find_nginx)
    fi
    dir=$(mktemp -d "${TMPDIR:-/tmp}/registry-demo.XXXXXX")
    # nginx started by root runs its workers as nobody, who must get at its files.
    chmod 755 "$dir"
    unset TOKEN HOST PORT WEIGHT MAX_CONNS VERBOSE
    export API_PATH=/upstream NAMESPACE=backend TIMEOUT=5
}

# write_conf PORT LINES: the lines stand in the registry's block.
write_conf() {
    cat >"$dir/$node/nginx.conf" <<END
load_module "$module";
worker_processes 2;
error_log error.log notice;
pid nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path client_body_temp;
    proxy_temp_path proxy_temp;
    fastcgi_temp_path fastcgi_temp;
    uwsgi_temp_path uwsgi_temp;
    scgi_temp_path scgi_temp;

    registry demo 1m {
        heartbeat_ttl 3s;
        cleanup_interval 1s;
        on_expire disable;
        $2
    }
    upstream backend {
        registry demo;
        keepalive 16;
    }
    server {
        listen 127.0.0.1:$1;
        location /upstream/ { registry_api demo; }
        location / {
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
    }
}
END
}

# Below the ports that the system takes for connections, so that who stops listening
# on one can have it again.
free_port() {
    perl -MIO::Socket::INET -e '
        open my $range, "<", "/proc/sys/net/ipv4/ip_local_port_range";
        my ($end) = split " ", ($range && <$range>) || "32768";
        $end = 32768 if $end < 12000;
        for (1 .. 1000) {
            my $port = 11000 + int rand($end - 11000);
            next unless IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Listen => 1);
            print $port;
            exit;
        }
        die "no free port\n"'
}

# start_nginx NAME [LINES]: a node with its own prefix and port; it is talked to from now on.
start_nginx() {
    local port try answer
    node=$1
    mkdir -p "$dir/$node"
    for try in 1 2 3 4 5; do
        port=$(free_port)
        write_conf "$port" "${2-}"
        if answer=$("$nginx" -e "$dir/$node/error.log" -p "$dir/$node" -c "$dir/$node/nginx.conf" 2>&1); then
            url[$node]=http://127.0.0.1:$port
            return
        fi
        # Someone may have taken the port in between.
        [[ $answer == *'Address already in use'* && $try != 5 ]] || die "nginx does not start" "$answer"
    done
}
version() { "$nginx" -v 2>&1 | sed 's/^nginx version: //'; }

# --- servers -----------------------------------------------------------------

# start_backend NAME DELAY_MS [COMMAND]: a server, and what keeps it alive, in a process
# group of their own. The command, of bash, finds the port in $PORT.
start_backend() {
    # shellcheck disable=SC2016  # the inner shell expands these
    setsid bash -c '
        perl "$1/demo_backend.pl" "$2" "$3" "$4" &
        while [[ ! -s $4 ]]; do sleep 0.05; done
        PORT=$(<"$4") ROOT=$1/../..
        export PORT HOST=127.0.0.1 INTERVAL=1
        eval "$5"
    ' server "$ROOT/scripts/lib" "$1" "$2" "$dir/$1.port" "${3:-wait}" >>"$dir/$1.log" 2>&1 </dev/null &
    group[$1]=$!
    # The shell says nothing when a job that it does not know is killed.
    disown
}
# start_server NAME DELAY_MS: with heartbeats to the node.
start_server() {
    # shellcheck disable=SC2016  # the inner shell expands these
    BASE_URL=${url[$node]} start_backend "$1" "$2" 'exec "$ROOT/scripts/heartbeat_client.sh"'
}
# Nobody has the address of one that does not listen yet.
address() { printf '127.0.0.1:%s' "$(cat "$dir/$1.port" 2>/dev/null || echo 0)"; }

manage() { BASE_URL=${url[$node]} "$ROOT/scripts/manage_servers.sh" "$@"; }
manage_and_say() { manage "$@" | sed 's/^/    /'; }
status_json() { manage status --json; }
# The table of servers, each with its name before it.
table() {
    local name script='s/^/    /'
    for name in "${server_names[@]}"; do
        [[ ! -s $dir/$name.port ]] || script+=";s/^    $(address "$name") /  $name $(address "$name") /"
    done
    manage status | sed "$script"
}
# of NAME FIELD: what status says of one server.
of() { status_json | jq -r --arg addr "$(address "$1")" '.data[] | select(.addr == $addr) | '".$2"; }
state_is() { [[ $(of "$1" state) == "$2" ]]; }
state_is_not() { ! state_is "$@"; }
hears() { [[ $(of "$1" 'time_since_heartbeat < 2') == true ]]; }
active_are() { [[ $(curl -sS --max-time 5 "${url[$node]}/upstream/health?ns=$NAMESPACE" | jq .data.active_servers) == "$1" ]]; }
in_flight() { status_json | jq '[.data[].connections] | add // 0'; }
some_in_flight() { (($(in_flight) > 0)); }
none_in_flight() { [[ $(status_json | jq '.total > 0 and all(.data[]; .connections == 0)') == true ]]; }

# --- traffic -----------------------------------------------------------------

readonly PARALLEL=12

# send COUNT: so many requests to the node, always PARALLEL of them at a time. The
# answers, each the name of a server, go to $dir/answers.
send() { curl -sSZ --no-progress-meter --parallel-max "$PARALLEL" --max-time 30 "${url[$node]}/?[1-$1]" >"$dir/answers" || true; }

# Traffic to all nodes that goes on until stop_traffic, in the same way.
start_traffic() {
    rm -f -- "$dir/stop" "$dir/answers" "$dir/sent"
    # shellcheck disable=SC2016  # the inner shell expands these
    setsid bash -c '
        dir=$1 parallel=$2
        shift 2
        while [[ ! -e $dir/stop ]]; do
            echo $((60 * $#)) >>"$dir/sent"
            curl -sSZ --no-progress-meter --parallel-max "$parallel" --max-time 30 "${@/%//?[1-60]}" >>"$dir/answers"
        done
        : >"$dir/stopped"
    ' traffic "$dir" "$PARALLEL" "${url[@]}" </dev/null 2>>"$dir/traffic.log" &
    group[traffic]=$!
    disown
}
# Lets the requests that are under way come to their end.
stop_traffic() {
    [[ -n ${group[traffic]-} ]] || return 0
    rm -f -- "$dir/stopped"
    : >"$dir/stop"
    within 35 test -e "$dir/stopped" || true
    unset 'group[traffic]'
}
sent() { awk '{ n += $1 } END { print n + 0 }' "$dir/sent"; }

answers_of() { grep -cx "$1" "$dir/answers" || true; }
good_answers() { grep -cxE "$(IFS='|' && printf '%s' "${server_names[*]}")" "$dir/answers" || true; }
all_good() { [[ $(good_answers) == "$1" && $(wc -l <"$dir/answers") == "$1" ]]; }
shares() {
    local name text=
    for name in "${server_names[@]}"; do
        text+="${text:+, }$name answered $(answers_of "$name")"
    done
    printf '    %s\n' "$text"
}

# --- going on ----------------------------------------------------------------

# go_on COMMAND...: repeats it every two seconds until Ctrl-C.
go_on() {
    local going=yes
    trap 'going=no' INT
    while [[ $going == yes ]]; do
        printf '\n%(%H:%M:%S)T\n' -1
        "$@" || true
        # Answers are not needed any more: the file must not grow without end.
        : >"$dir/answers"
        : >"$dir/sent"
        sleep 2 || true
    done
    trap 'exit 130' INT
}
