# shellcheck shell=bash
# The demo of one nginx. Sourced by scripts/demo, after demo.sh.
# shellcheck disable=SC2154  # what these have set

start_nginx nginx
say "$(version) with 2 workers at ${url[nginx]}"

step "1. Three servers register themselves: a and b answer after 30 ms, c after 90 ms"
start_server a 30
start_server b 30
start_server c 90
claim "three servers are active" within 10 active_are 3
[[ $failed == no ]] || die "the servers did not come; what their heartbeats say:" "$(cat "$dir"/?.log)"
send 300
shares
shared() {
    (($(answers_of a) > 50 && $(answers_of b) > 50 && $(answers_of c) > 10))
}
slow_has_less() {
    (($(answers_of c) * 3 < $(answers_of a) * 2 && $(answers_of c) * 3 < $(answers_of b) * 2))
}
claim "300 requests, $PARALLEL at a time, were all answered" all_good 300
claim "all three servers took part" shared
claim "the slow one got fewer: requests go where the fewest are" slow_has_less
table

step "2. Server b and its heartbeats are killed (kill -9) while requests flow"
start_traffic
sleep 0.5
kill_group b KILL
unset 'group[b]'
gone() { active_are 2 && state_is_not b up; }
claim_soon 8 "b is out of rotation (a server may be silent for 3)" gone
stop_traffic
claim "no client noticed: all $(sent) requests of that time were answered" all_good "$(sent)"
send 100
shares
only_a_and_c() { [[ $(answers_of b) == 0 ]] && all_good 100; }
claim "the next 100 requests all went to a and c" only_a_and_c
table

step "3. Server a is disabled by hand"
manage_and_say disable "$(address a)"
only_c() { [[ $(answers_of c) == "$1" ]] && all_good "$1"; }
send 60
shares
claim "the next 60 requests all went to c" only_c 60
sleep 2.5
claim "a still sends heartbeats" hears a
send 60
claim "and stays disabled all the same: 60 more, all to c" only_c 60
table

step "4. The traffic stops"
start_traffic
claim "while it flows, requests are counted as in flight" within 5 some_in_flight
stop_traffic
claim "now every server's count of requests in flight is 0" within 2 none_in_flight
table

all_was_as_said
echo "All as said, and all in-flight counts are 0."
[[ $once == no ]] || exit 0

step "It goes on until Ctrl-C: a is enabled, b starts again, requests flow"
manage_and_say enable "$(address a)"
start_server b 30
start_traffic
cat <<END

Try, in another terminal:
    curl ${url[nginx]}/
    export BASE_URL=${url[nginx]} NAMESPACE=$NAMESPACE
    $ROOT/scripts/manage_servers.sh status
    $ROOT/scripts/manage_servers.sh disable $(address a)
    $ROOT/scripts/manage_servers.sh weight $(address c),weight=10
    kill -9 -- -${group[b]}        # server b
    tail -f $dir/nginx/error.log
END
go_on table

step "Stopping"
stop_traffic
claim "every server's count of requests in flight is 0" within 5 none_in_flight
table || true
[[ $failed == no ]]
