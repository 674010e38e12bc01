# shellcheck shell=bash
# The demo of two nginx and one Redis. Sourced by scripts/demo, after demo.sh.
# shellcheck disable=SC2154  # what these have set

for tool in redis-server redis-cli; do
    command -v "$tool" >/dev/null || die "$tool is not installed" "Run scripts/setup first."
done

readonly KEYS=(upstream:backend:servers:zset upstream:backend:servers:meta upstream:backend:heartbeat)
redis_port=

# Begins with nothing, and keeps nothing on disk.
start_redis() {
    mkdir -p "$dir/redis"
    setsid redis-server --port "$redis_port" --bind 127.0.0.1 --dir "$dir/redis" --save '' --appendonly no \
        --maxmemory-policy noeviction >>"$dir/redis.log" 2>&1 </dev/null &
    group[redis]=$!
    disown
    within 5 redis_answers
}
redis_answers() { kill -0 "${group[redis]}" 2>/dev/null && [[ $(redis PING 2>/dev/null) == PONG ]]; }
redis() { redis-cli -p "$redis_port" "$@"; }

for _ in 1 2 3 4 5; do
    redis_port=$(free_port)
    ! start_redis || break
done
redis_answers || die "Redis does not start" "$(tail -n 5 "$dir/redis.log")"
REDIS_URL=redis://127.0.0.1:$redis_port/0
for node in one two; do
    start_nginx "$node" "redis $REDIS_URL;"
done
say "Redis $(redis INFO server | sed -n 's/^redis_version:\([0-9.]*\).*/\1/p') at $REDIS_URL (process ${group[redis]})"
say "$(version), two nodes: one at ${url[one]}, two at ${url[two]}"

tables() {
    local node
    for node in one two; do
        printf '  node %s\n' "$node"
        table
    done
}
both() {
    local node
    for node in one two; do
        "$@" || return 1
    done
}
connected_is() { [[ $(status_json | jq .sync.connected) == "$1" ]]; }
weight_is() { [[ $(of "$1" weight) == "$2" ]]; }
all_up() {
    local name
    for name in "${server_names[@]}"; do
        state_is "$name" up || return 1
    done
}
# The same servers in all that one has a hand in.
same_on_both() { [[ $(at one known) == "$(at two known)" ]]; }
known() { status_json | jq -cS '[.data[] | {addr, weight, max_conns, enabled}] | sort_by(.addr)'; }
only() { # NAMES COUNT: these alone answered
    local name
    for name in "${server_names[@]}"; do
        [[ " $1 " == *" $name "* || $(answers_of "$name") == 0 ]] || return 1
    done
    all_good "$2"
}

step "1. Server a registers at node one, and at no other"
claim "both nodes have found Redis" within 10 both connected_is true
at one start_server a 30
claim "node one has it" within 10 at one state_is a up
claim_soon 5 "node two has it, too" at two state_is a up
node=two
send 60
shares
claim "60 requests to node two were answered, all by a" only a 60

step "2. Servers b and c are written into Redis by other programs"
# What the heartbeats of b are: its own program writes the time of Redis, once a second.
# shellcheck disable=SC2016  # the inner shell expands these
REDIS_PORT=$redis_port start_backend b 30 '
    while sleep 1; do
        redis-cli -p "$REDIS_PORT" EVAL "return redis.call(\"HSET\", KEYS[1], ARGV[1], redis.call(\"TIME\")[1])" \
            1 upstream:backend:heartbeat "$HOST:$PORT"
    done'
start_backend c 30
listen() { [[ -s $dir/b.port && -s $dir/c.port ]]; }
within 5 listen || die "the servers did not come" "$(cat "$dir"/?.log)"
now=$(redis TIME | head -n 1)
meta="{\"host\":\"127.0.0.1\",\"port\":$(<"$dir/b.port"),\"weight\":1,\"max_conns\":1000,\"enabled\":true,\"created_at\":$now,\"last_heartbeat\":$now}"
for command in "ZADD ${KEYS[0]} 0 $(address b)" "HSET ${KEYS[1]} $(address b) $meta" "HSET ${KEYS[2]} $(address b) $now"; do
    printf '    redis-cli %s\n' "$command"
    read -ra words <<<"$command"
    redis "${words[@]}" >/dev/null
done
claim_soon 5 "both nodes have b" both state_is b up
printf '    scripts/init_redis.sh --keep --namespace backend <(echo "%s weight=2")\n' "$(address c)"
"$ROOT/scripts/init_redis.sh" --redis "$REDIS_URL" --keep --namespace backend <(printf '%s weight=2\n' "$(address c)") | sed 's/^/    /'
claim_soon 5 "both nodes have c" both state_is c up
# From now on c sends heartbeats to node two.
BASE_URL=${url[two]} PORT=$(<"$dir/c.port") HOST=127.0.0.1 INTERVAL=1 \
    setsid "$ROOT/scripts/heartbeat_client.sh" >>"$dir/c.log" 2>&1 </dev/null &
group[heartbeats of c]=$!
disown
served_by_all() { (($(answers_of a) > 0 && $(answers_of b) > 0 && $(answers_of c) > 0)); }
for node in one two; do
    send 60
    shares
    claim "60 requests to node $node were answered" all_good 60
    claim "by all three servers" served_by_all
done
tables

step "3. Server a is disabled on node two, which never had it register"
at two manage_and_say disable "$(address a)"
claim_soon 5 "node one has it disabled" at one state_is a down
node=one
send 60
shares
claim "60 requests to node one were answered by b and c" only "b c" 60
at one manage_and_say enable "$(address a)"
claim_soon 5 "it is up on node two" at two state_is a up

step "4. Redis is killed (kill -9 ${group[redis]}) while requests flow to both nodes"
start_traffic
sleep 0.5
kill_group redis KILL
unset 'group[redis]'
claim_soon 10 "both nodes say that it is gone" both connected_is false
at two manage_and_say weight "$(address c),weight=5"
# Longer than a server may be silent.
sleep 5
claim "a's heartbeats arrive at node one all the time" at one hears a
claim "and c's at node two" at two hears c
claim "on both nodes all servers are up, those too whose heartbeats came by Redis" both all_up
said_once() { [[ $(grep -c "Redis .* can't be used: " "$dir/$node/error.log") == 1 ]]; }
claim "each node has said so once in its error log" both said_once
grep -h "can't be used: " "$dir/one/error.log" | sed 's/^/    /'
stop_traffic
claim "no client noticed: all $(sent) requests of that time were answered" all_good "$(sent)"
tables

step "5. Redis starts again, with nothing in it"
start_redis || die "Redis does not start" "$(tail -n 5 "$dir/redis.log")"
printf '    it is process %s, and has %s keys\n' "${group[redis]}" "$(redis DBSIZE)"
filled() {
    local name
    [[ $(redis ZCARD "${KEYS[0]}") == 3 && $(redis HLEN "${KEYS[1]}") == 3 && $(redis HLEN "${KEYS[2]}") == 3 ]] || return 1
    for name in "${server_names[@]}"; do
        redis HGET "${KEYS[1]}" "$(address "$name")" | jq -e .enabled >/dev/null || return 1
    done
}
claim_soon 15 "the nodes have filled it again" filled
for key in "${KEYS[@]}"; do
    printf '    %-29s %-4s %s servers\n' "$key" "$(redis TYPE "$key")" \
        "$(if [[ $key == *zset ]]; then redis ZCARD "$key"; else redis HLEN "$key"; fi)"
done
"$ROOT/scripts/init_redis.sh" --redis "$REDIS_URL" --show --namespace backend | sed 's/^/    /'
claim "both nodes use it" within 15 both connected_is true
claim "the weight that node two gave c meanwhile is on node one now" within 10 at one weight_is c 5
claim "both have the same servers, and all are up" within 10 both all_up
claim "with the same weights and limits" within 5 same_on_both
for node in one two; do
    send 60
    claim "60 more requests to node $node were answered" all_good 60
done

step "6. The traffic stops"
start_traffic
claim "while it flows, requests are counted as in flight" within 5 at one some_in_flight
total() { redis ZRANGE "${KEYS[0]}" 0 -1 WITHSCORES | awk 'NR % 2 == 0 { n += $1 } END { print n + 0 }'; }
total_is_more() { (($(total) > 0)); }
total_is_0() { [[ $(total) == 0 ]]; }
claim_soon 10 "Redis has the sum of both nodes" total_is_more
stop_traffic
claim "now every count of requests in flight is 0, on both nodes" within 10 both none_in_flight
claim "and in Redis" within 10 total_is_0
tables

if [[ $once == no ]]; then
    step "It goes on until Ctrl-C: requests flow to both nodes"
    start_traffic
    cat <<END

Try, in another terminal:
    curl ${url[one]}/ ${url[two]}/
    redis-cli -p $redis_port HGETALL ${KEYS[1]}
    export BASE_URL=${url[one]} NAMESPACE=$NAMESPACE
    $ROOT/scripts/manage_servers.sh disable $(address a)
    kill -9 ${group[redis]}                # Redis
    kill -9 -- -${group[b]}        # server b
    tail -f $dir/*/error.log
END
    go_on tables
    step "Stopping"
    stop_traffic
    claim "every count of requests in flight is 0" within 10 both none_in_flight
fi

for node in one two; do
    claim "node $node ends when it is told to" stop_nginx
done
all_was_as_said
echo "All as said, and all in-flight counts are 0."
