# The clock of the machine that Redis runs on is set, or another Redis, with another clock, takes its place: to nodes
# time goes on.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync.pl";

our ($INTERVAL, $SLACK);
my $TTL = 1.2 * time_scale();

for my $offset (-3600, 3600) {
    subtest 'the clock of Redis is set ' . ($offset < 0 ? 'back by an hour' : 'forward by an hour, and back') => sub {
        my $clock = RegistryTest->clock(0);
        my $redis = RegistryTest->redis(env => $clock->env);
        my ($one, $two) = my @nodes = map { node(redis => $redis, settings => { heartbeat_ttl => ms($TTL) }) } 1, 2;
        connected($_) for @nodes;
        my ($addr, $gone) = map { "127.0.0.9:$_" } 1, 2;
        change($one, add => $_) for $addr, $gone;
        agree(\@nodes, [ $addr, $gone ], 'two servers');
        for my $now ($offset < 0 ? $offset : ($offset, 0)) {
            $clock->set($now);
            my ($until, %states) = (time + 2.5 * $TTL);
            while (time < $until) {
                change($one, refresh => $addr);
                $states{ server($_, $addr)->{state} } = 1 for @nodes;
                sleep $TTL / 8;
            }
            is(join(' ', keys %states), 'up', "$now seconds off: heartbeats to one node keep a server up on both");
            ok(wait_until(sub { server($_, $gone)->{state} eq 'expired' }), 'one that is silent has expired') for @nodes;
            my $weight = 1 + int rand 1000;
            change($one, weight => $addr, weight => $weight);
            becomes($two, $addr, { weight => $weight }, 'a change of a server that is older than that');
            disable($two, $addr);
            becomes($one, $addr, { enabled => 'false' }, 'by either');
            enable($two, $addr);
            becomes($one, $addr, { enabled => 'true' }, 'and back');
            change($one, remove => $addr);
            becomes($two, $addr, undef, 'it can be removed');
            sleep 2 * $INTERVAL;
            is(known($_), $gone, 'and stays so') for @nodes;
            change($two, add => $addr);
            becomes($one, $addr, { state => 'up' }, 'and added again');
            change($one, refresh => $gone);
            becomes($two, $gone, { state => 'up' }, 'one that had expired comes back with a heartbeat');
            is(sync($_)->{nodes}, 2, 'two nodes') for @nodes;
        }
        log_says($_, 'used', 'the log') for @nodes;
        $_->log_is_clean for @nodes;
    };
}

done_testing;
