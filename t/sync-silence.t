# Silence, with several nodes: whoever hears of a server through Redis alone does not take Redis' absence for
# that of the server.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/sync-silence.pl";

our ($INTERVAL, $SLACK, $TTL);

subtest 'heartbeats to one node are heartbeats to all' => sub {
    my $redis = RegistryTest->redis;
    my (undef, undef, $one, $two) = two($redis);
    my $addr = '127.0.0.9:1';
    change($one, add => $addr);
    becomes($two, $addr, {}, 'a server');
    is(join(',', beat(2.5 * $TTL, $addr, $one, $one, $two)), 'up,up', 'heard of on one, it is up on both');
    ok(abs(server($one, $addr)->{last_heartbeat} - server($two, $addr)->{last_heartbeat}) < $SLACK / 2, 'by the same heartbeat')
        or diag(server($one, $addr)->{last_heartbeat} - server($two, $addr)->{last_heartbeat});
    my $since = time;
    ok(wait_until(sub { state_of($one, $addr) eq 'expired' && state_of($two, $addr) eq 'expired' }), 'silent, it expires on both');
    my $took = time - $since;
    ok($took > $TTL * 0.8 && $took < $TTL + $SLACK, 'in its time') or diag($took);
    becomes($_, $addr, { enabled => 'false', disabled_reason => 'heartbeat_timeout' }, 'and is disabled, by each') for $one, $two;
    sleep 2 * $INTERVAL;
    my $meta = $redis->registry->{$addr}{meta};
    ok($meta->{enabled}, 'which is no change that others must make') or diag(explain($meta));
    change($two, refresh => $addr);
    becomes($_, $addr, { state => 'up', enabled => 'true' }, 'the next heartbeat brings it back on both') for $one, $two;
    is_deeply([ map { scalar $_->grep_log(qr/server \Q$addr\E (?:disabled|enabled|removed|added)/) } $one, $two ], [ 1, 1 ],
        'the log has no change but that it was added');
    $_->log_is_clean for $one, $two;
};

for my $data (0, 1) {
    subtest 'Redis is away for three TTLs, ' . ($data ? 'and has its data' : 'and has lost its data') => sub {
        my $redis = RegistryTest->redis($data ? (persist => 'aof') : ());
        my (undef, undef, $one, $two) = two($redis);
        my ($heard, $silent, $own) = map { "127.0.0.9:$_" } 1 .. 3;
        change($one, add => $_) for $heard, $silent;
        change($two, add => $own);
        agree([ $one, $two ], [ $heard, $silent, $own ], 'three servers');
        # What each has heard last came through the first node, but for its own.
        for (1 .. 2) { change($one, refresh => $_) for $heard, $silent; change($two, refresh => $own); sleep $TTL / 4 }

        $redis->stop('KILL');
        ok(disconnected($_), 'it goes') for $one, $two;
        my @states = beat(3.5 * $TTL, $heard, $one, $one, $two);
        is($states[0], 'up', 'a server that one hears of is up there');
        is($states[1], 'up', 'and on the other, which does not hear of it');
        is(state_of($one, $silent), 'expired', 'one that is silent has expired where it was heard of');
        is(state_of($two, $own), 'expired', 'on each node');

        # From now on nobody says anything.
        $redis->start;
        my ($back, $was_up, $gone) = (0, 0);
        wait_until(sub {
            my ($connected, $state) = (sync($two)->{connected}, state_of($two, $heard));
            $back ||= time if $connected;
            $was_up = time if $state eq 'up';
            return $gone = $state eq 'expired';
        }, $TTL + 10 * $SLACK);
        ok($back, 'it is back');
        ok($gone, 'silent from now on, it expires');
        cmp_ok($was_up - $back, '>', 0.7 * $TTL, 'when its TTL is over, which began in full') or diag($was_up - $back);
        ok(wait_until(sub { state_of($_, $heard) eq 'expired' }), 'on both') for $one, $two;
        ok(connected($_, 10 * time_scale()), 'both are connected') for $one, $two;
        change($one, refresh => $_) for $heard, $silent, $own;
        agree([ $one, $two ], [ map { "$_ 1 1000 true up" } $heard, $silent, $own ], 'and all come back with a heartbeat');
        $_->log_is_clean for $one, $two;
    };
}

done_testing;
